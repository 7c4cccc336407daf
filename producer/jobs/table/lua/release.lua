-- Give a chunk back unfinished; this attempt is not held against its images.
-- KEYS  1 job  2 waiting  3 leases  4 holders  5 attempts  6 marks
-- ARGV  1 chunk  2 token  3 life
-- gives {'released', time published, state} | {'lost'} | {'gone'} | {state of a job that has ended}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'life')
local state = f[1]
if not state or (f[2] or '') ~= ARGV[3] then return {'gone'} end
-- Its keys have their lifetime by now; a new one would stay for ever.
if state ~= 'running' and state ~= 'paused' then return {state} end
if string.match(redis.call('HGET', KEYS[4], ARGV[1]) or '', '^(%d+):') ~= ARGV[2] then return {'lost'} end
local t = stamp(now())
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('HDEL', KEYS[6], ARGV[1])
count_up(KEYS[5], ARGV[1], -1)
redis.call('ZADD', KEYS[2], t, ARGV[1])
return {'released', t, state}
