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

-- How many items a chunk has, by its entry in `chunks` (digest:count).
local function count_of(chunks, chunk)
  return tonumber(string.match(redis.call('HGET', chunks, chunk) or ':0', ':(%d+)$'))
end

-- The class an image was explained for, and 1 or -1 where its prediction is right or wrong: '+281 tabby'.
local function class_of(text)
  local sign = string.byte(text)
  if sign == 43 then return string.sub(text, 2), 1 end
  if sign == 45 then return string.sub(text, 2), -1 end
  return text, 0
end
