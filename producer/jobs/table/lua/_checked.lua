-- What Redis holds of a job need not be ours: a newer release writes otherwise, somebody mistypes. It is looked at before
-- anything loops over it and before anything is written, so that it concerns this job alone and nothing is done by half.
local MOST_COUNT, MOST_CHUNK_SIZE, MOST_SECONDS, MOST_WORDS = 1e15, 512, 253402300799, 10000
-- Chunks come in order, so that one has no number far above how many there are: its bits would take the memory.
local CHUNKS_AHEAD = 65536
-- A lease that ends later than this is none.
local LONGEST_LEASE_S = 30 * 86400
local KNOWN = {running = true, paused = true, finalizing = true, repairing = true, deleting = true, succeeded = true,
  completed_with_errors = true, failed = true, cancelled = true}
local COUNTS = {'total', 'done', 'failed', 'n_chunks', 'n_open', 'token', 'generation', 'epoch', 'since', 'ends', 'base_n',
  'republished', 'declined', 'strikes', 'mark_n', 'last_mark_n', 'reopening', 'open_chunks', 'chunk_size'}
local SECONDS = {'created_at', 'ingest_at', 'started_at', 'finished_at', 'progress_at', 'mark_at', 'last_mark_at',
  'reopened_at', 'ready_at', 'struck_at', 'not_before', 'maintained_until', 'lifetime_s'}
local NEEDED = {total = true, done = true, failed = true, generation = true, chunk_size = true, created_at = true}
local PARTS = {'chunks', 'HLEN', 'items', 'HLEN', 'waiting', 'ZCARD', 'leases', 'ZCARD', 'holders', 'HLEN', 'attempts',
  'HLEN', 'bits', 'STRLEN', 'failures', 'HLEN', 'reasons', 'HLEN', 'marks', 'HLEN', 'suspects', 'HLEN', 'classes', 'HLEN',
  'timings', 'HLEN', 'troubles', 'HLEN', 'history', 'LLEN'}

-- The word that Python looks for; `what` is a name of ours.
local function unreadable(what)
  error('UNREADABLE <' .. what .. '>', 0)
end

-- A key that all jobs share is of another type.
local function unreadable_key(key)
  error('UNREADABLE KEY <' .. key .. '>', 0)
end

-- A whole number within bounds, as Redis and we write it; nil where it is anything else.
local function whole(text, least, most)
  local number = type(text) == 'string' and tonumber(text)
  if not number or not (number >= least and number <= most) then return nil end
  -- So are neither leading zeros nor spaces, nor 0x10 and 1e3.
  return string.format('%.0f', number) == text and text ~= '-0' and number or nil
end

-- Seconds, since 1970 or of a lease or lifetime; nil where it is anything else.
local function seconds(text)
  if type(text) ~= 'string' or #text > 32 or not string.match(text, '^%d[%d.e+-]*$') then return nil end
  local number = tonumber(text)
  return number and number <= MOST_SECONDS and number or nil
end

-- A JSON object; an empty one where it is anything else, or longer than we write any.
local function decoded(text)
  if type(text) ~= 'string' or #text > 2 ^ 20 then return {} end
  local ok, value = pcall(cjson.decode, text)
  return ok and type(value) == 'table' and value or {}
end

-- Call a command on what need not be as we write it; an error that is none of that is raised.
local function ask(...)
  local found = redis.pcall(...)
  local said = type(found) == 'table' and found.err
  if said and not (string.find(said, 'WRONGTYPE', 1, true) or string.find(said, 'not an integer', 1, true)
      or string.find(said, 'overflow', 1, true)) then
    error(said, 0)
  end
  return found
end

-- Add to a number that only tells something: one that is no number stays as it is, and stops nothing.
local function count_up(key, field, by)
  local found = ask('HINCRBY', key, field, by)
  return type(found) == 'number' and found or 1
end

-- What of a job is not as we write it, or nil; also nil where there is no such job.
local function fault_of(job)
  local names = {'state', 'ingest', 'queue', 'before', 'outcome', 'life', 'correct', 'wrong', 'unknown_labels',
    unpack(COUNTS)}
  local first = #names
  for _, name in ipairs(SECONDS) do names[#names + 1] = name end
  local f = ask('HMGET', job, unpack(names))
  if f.err then return 'its key' end
  if not f[1] then return redis.call('EXISTS', job) == 1 and 'state' or nil end
  if not KNOWN[f[1]] then return 'state' end
  if f[2] ~= 'open' and f[2] ~= 'closed' then return 'ingest' end
  if f[3] and f[3] ~= 'high' and f[3] ~= 'default' and f[3] ~= 'low' then return 'queue' end
  if (f[1] == 'repairing' or f[1] == 'deleting') and not (KNOWN[f[4]] or f[4] == 'forgotten') then return 'before' end
  if f[5] and f[5] ~= 'failed' and f[5] ~= 'cancelled' then return 'outcome' end
  if f[6] and not (#f[6] <= 64 and string.match(f[6], '^[%w_-]*$')) then return 'life' end
  for i = 7, 9 do
    if f[i] and not whole(f[i], -MOST_COUNT, MOST_COUNT) then return names[i] end
  end
  local found = {}
  for i = 10, #names do
    local name = names[i]
    if f[i] then
      found[name] = i > first and seconds(f[i]) or i <= first and whole(f[i], 0, MOST_COUNT)
      if not found[name] then return name end
    elseif NEEDED[name] then
      return name
    end
  end
  if found.chunk_size < 1 or found.chunk_size > MOST_CHUNK_SIZE then return 'chunk_size' end
  if found.done + found.failed > found.total then return 'total' end
  local length = {}
  for i = 1, #PARTS, 2 do
    local count = ask(PARTS[i + 1], job .. ':' .. PARTS[i])
    if type(count) ~= 'number' then return PARTS[i] end
    length[PARTS[i]] = count
  end
  for _, part in ipairs({'reasons', 'timings', 'troubles', 'history'}) do
    if length[part] > MOST_WORDS then return part end
  end
  if length.bits * 4 > found.total + CHUNKS_AHEAD * found.chunk_size then return 'bits' end
  return nil
end

-- Nothing is done to a job that is not as we write it.
local function check(job)
  local fault = fault_of(job)
  if fault then unreadable(fault) end
end

-- A chunk's number; a script that writes bits by it must not be led far behind the last.
local function chunk_number(chunks, chunk)
  local number = whole(chunk, 0, redis.call('HLEN', chunks) + CHUNKS_AHEAD)
  if not number then unreadable('chunks') end
  return number
end
