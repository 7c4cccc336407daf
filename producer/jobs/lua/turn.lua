-- Which chunk a message is worth. A message is leave to work at one waiting chunk of its class of service; whose turn it
-- is, is decided here: of the jobs that have one waiting, that one whose last turn is longest ago. A message of the queue
-- `recovery` means the very chunk it names, as long as that waits; after that it is leave like any other of its job's
-- class, since one of those was used up for its chunk.
-- KEYS  1 turns of the class; of the jobs in it also `gradcam:job:<job>` and `gradcam:job:<job>:waiting`
-- ARGV  1 job  2 chunk  3 '1' if that very chunk is meant
-- gives {job, chunk} | {}
local t = stamp(now())
local function taken(job, chunk)
  -- To the end of its job's row: who asks in the same moment gets another.
  redis.call('ZADD', 'gradcam:job:' .. job .. ':waiting', 'XX', t, chunk)
  return {job, tonumber(chunk)}
end
local meant = 'gradcam:job:' .. ARGV[1]
if ARGV[3] == '1' and redis.call('HGET', meant, 'state') == 'running'
    and redis.call('ZSCORE', meant .. ':waiting', ARGV[2]) then
  return taken(ARGV[1], ARGV[2])
end
local turns = KEYS[1]
if ARGV[3] == '1' then turns = 'gradcam:turns:' .. (redis.call('HGET', meant, 'queue') or '') end
for _, job in ipairs(redis.call('ZRANGE', turns, 0, -1)) do
  local state = redis.call('HGET', 'gradcam:job:' .. job, 'state')
  local first = state == 'running' and redis.call('ZRANGE', 'gradcam:job:' .. job .. ':waiting', 0, 0)[1]
  if first then
    to_the_end(turns, job)
    return taken(job, first)
  end
  if state ~= 'running' and state ~= 'paused' then redis.call('ZREM', turns, job) end
end
return {}
