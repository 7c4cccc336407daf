-- Find chunks of one job that nobody works at and no message points to any more, and give them a new publish time:
-- those whose lease ran out, and those that wait since before `lost` (see table.py for how that time is found).
-- KEYS  1 job  2 waiting  3 leases  4 holders
-- ARGV  1 lost (time)  2 at most
-- gives {state, time published, chunks with an expired lease, chunks with a lost pointer} | {'gone'}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'gone'} end
if state ~= 'running' then return {state, '0', {}, {}} end
local t = now()
local expired = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', stamp(t), 'LIMIT', 0, ARGV[2])
local lost = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, chunk in ipairs(expired) do
  redis.call('ZREM', KEYS[3], chunk)
  redis.call('HDEL', KEYS[4], chunk)
  redis.call('ZADD', KEYS[2], stamp(t), chunk)
end
for _, chunk in ipairs(lost) do
  redis.call('ZADD', KEYS[2], stamp(t), chunk)
end
return {state, stamp(t), expired, lost}
