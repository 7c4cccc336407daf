-- The two bits of items first .. first+count-1 of a job: 0 pending, 1 done, 2 failed.
local function read_bits(key, first, count)
  local call = {'BITFIELD', key}
  for i = first, first + count - 1 do
    call[#call + 1] = 'GET'
    call[#call + 1] = 'u2'
    call[#call + 1] = '#' .. i
  end
  return redis.call(unpack(call))
end

local function write_bit(key, index, value)
  redis.call('BITFIELD', key, 'SET', 'u2', '#' .. index, value)
end

-- How many items a chunk has, by its entry in `chunks` (digest:count); 0 where there is none.
local function count_of(chunks, chunk)
  local entry = redis.call('HGET', chunks, chunk)
  if not entry then return 0 end
  local count = #entry <= 100 and whole(string.match(entry, ':(%d+)$'), 1, MOST_CHUNK_SIZE)
  if not count then unreadable('chunks') end
  return count
end

-- What a sign before an image's class says of its label; each is a counter of the job.
local VERDICTS = {['+'] = 'correct', ['-'] = 'wrong', ['?'] = 'unknown_labels'}

-- The class an image was explained for, and the counter of what its label says, or nil: '+281 tabby'.
local function class_of(text)
  local verdict = VERDICTS[string.sub(text, 1, 1)]
  return verdict and string.sub(text, 2) or text, verdict
end

-- Move the counters of labels; a job without labels has none of them.
local function count_verdicts(job, counts, sign)
  if not next(counts) then return end
  for _, verdict in pairs(VERDICTS) do
    redis.call('HINCRBY', job, verdict, sign * (counts[verdict] or 0))
  end
end
