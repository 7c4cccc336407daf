-- Take a chunk for `lease` seconds. The same claim id asking again (its first reply was lost) gets the same lease.
-- KEYS  1 job  2 chunks  3 items  4 waiting  5 leases  6 holders  7 attempts  8 bits
-- ARGV  1 chunk  2 claim id  3 lease (s)  4 chunk size
-- gives {'claimed', token, attempt, payload, states of its items} | {'gone'|'complete'|'leased'|state}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'gone'} end
if state ~= 'running' then return {state} end
local payload = redis.call('HGET', KEYS[3], ARGV[1])
if not payload then return {'complete'} end
local t = now()
local deadline = redis.call('ZSCORE', KEYS[5], ARGV[1])
local token, attempt
if deadline and tonumber(deadline) > t then
  local holder = redis.call('HGET', KEYS[6], ARGV[1]) or ''
  token = string.match(holder, '^(%d+):')
  if holder ~= (token or '') .. ':' .. ARGV[2] then return {'leased'} end
  attempt = redis.call('HGET', KEYS[7], ARGV[1])
else
  token = redis.call('HINCRBY', KEYS[1], 'token', 1)
  attempt = redis.call('HINCRBY', KEYS[7], ARGV[1], 1)
  redis.call('HSET', KEYS[6], ARGV[1], token .. ':' .. ARGV[2])
  redis.call('HSETNX', KEYS[1], 'started_at', stamp(t))
end
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[5], stamp(t + tonumber(ARGV[3])), ARGV[1])
local count = tonumber(string.match(redis.call('HGET', KEYS[2], ARGV[1]), ':(%d+)$'))
local states = read_bits(KEYS[8], tonumber(ARGV[1]) * tonumber(ARGV[4]), count)
return {'claimed', tonumber(token), tonumber(attempt), payload, states}
