-- Hold a job that has ended for one client: while it repairs or deletes, nobody else changes it. Asked again by the same
-- client, it is held for longer. A job that Redis has forgotten can be held for the deletion of its objects.
-- KEYS  1 job  2 gradcam:active
-- ARGV  1 id  2 'repairing' or 'deleting'  3 who  4 lease (s)
-- gives {'yours', life} | {'gone'} | {state that does not allow it}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'before', 'life')
local lease_s = tonumber(ARGV[4])
if not f[1] then
  if ARGV[2] ~= 'deleting' then return {'gone'} end
  local t = stamp(now())
  redis.call('HSET', KEYS[1], 'state', 'deleting', 'before', 'forgotten', 'maintainer', ARGV[3],
    'maintained_until', stamp(now() + lease_s), 'life', '', 'name', ARGV[1], 'network', '', 'ingest', 'closed', 'total', 0,
    'done', 0, 'failed', 0, 'generation', 1, 'chunk_size', 1, 'created_at', t)
  redis.call('EXPIRE', KEYS[1], math.ceil(lease_s))
  return {'yours', ''}
end
local before = f[1]
if f[1] == 'repairing' or f[1] == 'deleting' then
  if not may_take_over(KEYS[1], ARGV[3]) then return {f[1]} end
  if f[1] == 'deleting' and ARGV[2] ~= 'deleting' then return {f[1]} end
  before = f[2]
  -- Nobody knows what the client before did.
  if f[1] == 'deleting' and redis.call('HGET', KEYS[1], 'maintainer') ~= ARGV[3] then
    redis.call('HSET', KEYS[1], 'touched', 1)
  end
elseif not ENDS[f[1]] then
  return {f[1]}
end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'before', before, 'maintainer', ARGV[3],
  'maintained_until', stamp(now() + lease_s))
redis.call('HDEL', KEYS[1], 'broken_off')
if before == 'forgotten' then
  redis.call('EXPIRE', KEYS[1], math.ceil(lease_s))
else
  redis.call('SADD', KEYS[2], ARGV[1])
end
return {'yours', f[3] or ''}
