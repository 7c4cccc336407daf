-- The holder of a chunk is known to be dead: its lease need not run out. What it had marked comes under suspicion.
-- KEYS  1 job  2 waiting  3 leases  4 holders  5 marks  6 suspects
-- ARGV  1 chunk  2 claim id  3 weight of this death
-- gives {'released', time published, state} | {'lost'} | {'gone'} | {state of a job that has ended}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'gone'} end
if state ~= 'running' and state ~= 'paused' then return {state} end
local holder = redis.call('HGET', KEYS[4], ARGV[1]) or ''
if string.match(holder, '^%d+:(.*)$') ~= ARGV[2] then return {'lost'} end
local t = stamp(now())
note_death(KEYS[5], KEYS[6], ARGV[1], tonumber(ARGV[3]))
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[2], t, ARGV[1])
return {'released', t, state}
