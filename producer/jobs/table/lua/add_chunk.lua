-- Add a chunk of items; adding the same one again changes nothing.
-- KEYS  1 job  2 chunks  3 items  4 waiting
-- ARGV  1 chunk  2 count  3 digest  4 payload  5 life, or '' for any
-- gives {'added', time published} | {'same'} | {'differs'} | {'gone'} | {'closed'} | {state of a job that takes no more}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'ingest', 'life')
if not f[1] or (ARGV[5] ~= '' and f[3] ~= ARGV[5]) then return {'gone'} end
local value = ARGV[3] .. ':' .. ARGV[2]
local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then return {known == value and 'same' or 'differs'} end
if f[2] == 'closed' then return {'closed'} end
if f[1] ~= 'running' and f[1] ~= 'paused' then return {f[1]} end
local t = stamp(now())
redis.call('HSET', KEYS[2], ARGV[1], value)
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
redis.call('ZADD', KEYS[4], t, ARGV[1])
redis.call('HINCRBY', KEYS[1], 'total', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'n_chunks', 1)
local idle = redis.call('HINCRBY', KEYS[1], 'n_open', 1) == 1
redis.call('HSET', KEYS[1], 'ingest_at', t, unpack(idle and {'ready_at', t} or {}))
return {'added', t}
