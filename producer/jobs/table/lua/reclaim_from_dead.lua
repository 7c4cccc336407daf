-- The holder of a chunk is known to be dead: its lease need not run out. What it had marked comes under suspicion.
-- A holder that hung may have lost its lease long before its parent killed it: what the parent saw counts all the same,
-- where it says more than the lease did that ran out (a weight of 1).
-- KEYS  1 job  2 waiting  3 leases  4 holders  5 marks  6 suspects  7 items
-- ARGV  1 chunk  2 claim id  3 weight of this death  4 offsets that it had marked, by commas  5 life, or '' for any
-- gives {'released', time published, state} | {'lost'} | {'gone'} | {state of a job that has ended}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'life')
local state = f[1]
if not state or (ARGV[5] ~= '' and f[2] ~= ARGV[5]) then return {'gone'} end
if state ~= 'running' and state ~= 'paused' then return {state} end
local holder = redis.call('HGET', KEYS[4], ARGV[1]) or ''
local weight = tonumber(ARGV[3])
if string.match(holder, '^%d+:(.*)$') ~= ARGV[2] then
  local told = redis.call('HGET', KEYS[6], 'reclaimed:' .. ARGV[1]) == ARGV[2]
  if weight > 1 and not told and redis.call('HEXISTS', KEYS[7], ARGV[1]) == 1 then
    suspect(KEYS[6], ARGV[1], ARGV[4], weight)
    redis.call('HSET', KEYS[6], 'reclaimed:' .. ARGV[1], ARGV[2])
  end
  return {'lost'}
end
redis.call('HSET', KEYS[6], 'reclaimed:' .. ARGV[1], ARGV[2])
local t = stamp(now())
note_death(KEYS[5], KEYS[6], ARGV[1], weight)
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[2], t, ARGV[1])
count('reclaimed', 1)
return {'released', t, convict(KEYS[1])}
