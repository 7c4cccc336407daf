-- Pick the chunk that a message lets a worker take: of the jobs of that priority with a waiting chunk, the job that was
-- picked longest ago. A job in trouble is delayed while others wait; a job that this worker has refused, or passes over
-- now, is left out. A
-- message of the queue `recovery` names its chunk, as long as that waits and its job is in no trouble; after that it is
-- like any other message of its job's priority, since one of those was used up for its chunk.
-- KEYS  1 round robin of the priority; of the jobs in it also `gradcam:job:<job>`, `gradcam:job:<job>:waiting` and `…:troubles`
-- ARGV  1 job  2 chunk  3 '1' if that very chunk is meant  4 worker  5.. jobs that it passes over now
-- writes `gradcam:picked:<priority>`, by which metrics see who was passed over
-- gives {job, chunk} | {priority} where nothing waits but jobs that are left out | {}
local MOST_BROKEN = 1000
local t = now()
local passed_over = {}
for i = 5, #ARGV do passed_over[ARGV[i]] = true end
local function refused(job)
  if passed_over[job] then return true end
  local word = redis.call('HGET', 'gradcam:job:' .. job .. ':troubles', 'worker:' .. ARGV[4])
  local till = word and (seconds(decoded(word)['until']) or 0) - t
  return till and till > 0 and till <= LONGEST_REFUSAL_S
end
local function delayed(not_before)
  local till = not_before and tonumber(not_before) - t
  return till and till > 0 and till <= LONGEST_S
end
local function taken(job, chunk)
  -- To the end of its job's waiting chunks: who asks in the same moment gets another.
  redis.call('ZADD', 'gradcam:job:' .. job .. ':waiting', 'XX', stamp(t), chunk)
  return {job, tonumber(chunk)}
end
local round_robin = KEYS[1]
if ARGV[3] == '1' then
  local meant = 'gradcam:job:' .. ARGV[1]
  local f = fault_of(meant) and {} or redis.call('HMGET', meant, 'state', 'not_before', 'queue')
  if f[1] == 'running' and not delayed(f[2]) and redis.call('ZSCORE', meant .. ':waiting', ARGV[2])
      and not refused(ARGV[1]) then
    return taken(ARGV[1], ARGV[2])
  end
  round_robin = 'gradcam:round-robin:' .. (f[3] or '')
end
-- It goes to the end. The place at which it stood is kept: a job before that with a waiting chunk was passed over.
local function picked(job)
  local key, place = 'gradcam:picked:' .. string.match(round_robin, '[^:]*$'), tonumber(redis.call('ZSCORE', round_robin, job))
  to_the_end(round_robin, job)
  local front, last = tonumber(ask('HGET', key, 'place')), tonumber(redis.call('ZSCORE', round_robin, job))
  -- One that others had passed over may be picked at last; a row that was counted anew has lower places.
  if front and front < last then place = math.max(front, place) end
  ask('HSET', key, 'place', string.format('%.0f', place), 'at', stamp(t))
end
local later, left, passed = nil, nil, 0
for _, job in ipairs(redis.call('ZRANGE', round_robin, 0, MOST_ROW - 1)) do
  local f = is_job(job) and ask('HMGET', 'gradcam:job:' .. job, 'state', 'not_before') or {}
  local running = f[1] == 'running'
  local broken = not is_job(job) or f.err or (f[1] and not KNOWN[f[1]]) or (running and fault_of('gradcam:job:' .. job))
  local first = running and not broken and first_chunk('gradcam:job:' .. job .. ':waiting')
  if first and refused(job) then
    left = true
  elseif first and delayed(f[2]) then
    later = later or {job, first}
  elseif first then
    picked(job)
    return taken(job, first)
  end
  if broken then
    -- It stays, since a newer release may know it, and makes way.
    to_the_end(round_robin, job)
    passed = passed + 1
    if passed == MOST_BROKEN then break end
  elseif not running and f[1] ~= 'paused' then
    redis.call('ZREM', round_robin, job)
  end
end
if later then
  picked(later[1])
  return taken(later[1], later[2])
end
return left and {string.match(round_robin, '[^:]*$')} or {}
