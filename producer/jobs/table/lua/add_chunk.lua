-- Add a chunk of items; adding the same one again changes nothing. A sender that has something to enter of it holds it
-- from the first moment on: no worker takes it before, and `claim` with the same claim id gives it that lease.
-- KEYS  1 job  2 chunks  3 items  4 waiting  5 leases  6 holders  7 attempts
-- ARGV  1 chunk  2 count  3 digest  4 payload  5 life, or '' for any  6 claim id, or '' where it is to wait  7 lease (s)
-- gives {'added', time published} | {'same'} | {'differs'} | {'gone'} | {'closed'} | {state of a job that takes no more}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'ingest', 'life', 'token')
if not f[1] or (ARGV[5] ~= '' and f[3] ~= ARGV[5]) then return {'gone'} end
local value = ARGV[3] .. ':' .. ARGV[2]
local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then return {known == value and 'same' or 'differs'} end
if f[2] == 'closed' then return {'closed'} end
if f[1] ~= 'running' and f[1] ~= 'paused' then return {f[1]} end
local t = now()
redis.call('HSET', KEYS[2], ARGV[1], value)
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
if ARGV[6] == '' then
  redis.call('ZADD', KEYS[4], stamp(t), ARGV[1])
else
  local token = next_token(f[4], t)
  redis.call('HSET', KEYS[1], 'token', token)
  redis.call('ZADD', KEYS[5], stamp(t + tonumber(ARGV[7])), ARGV[1])
  redis.call('HSET', KEYS[6], ARGV[1], token .. ':' .. ARGV[6])
  redis.call('HSET', KEYS[7], ARGV[1], 1)
end
redis.call('HINCRBY', KEYS[1], 'total', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'n_chunks', 1)
local idle = redis.call('HINCRBY', KEYS[1], 'n_open', 1) == 1
redis.call('HSET', KEYS[1], 'ingest_at', stamp(t), unpack(idle and {'ready_at', stamp(t)} or {}))
return {'added', stamp(t)}
