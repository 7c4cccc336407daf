-- Take a chunk for `lease` seconds. The same claim id asking again (its first reply was lost) gets the same lease.
-- KEYS  1 job  2 chunks  3 items  4 waiting  5 leases  6 holders  7 attempts  8 bits  9 marks  10 suspects
-- ARGV  1 chunk  2 claim id  3 lease (s)  4 '1' if a producer asks, which enters what the store has of it: also while it is paused
-- gives {'claimed', token, attempt, payload, states of its items, suspects, generation, life, epoch, span of its submission}
--       | {'gone'|'complete'|'leased'|state}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'chunk_size', 'token', 'generation', 'life', 'epoch', 'traceparent')
if not f[1] then return {'gone'} end
if f[1] ~= 'running' and not (f[1] == 'paused' and ARGV[4] == '1') then return {f[1]} end
local payload = redis.call('HGET', KEYS[3], ARGV[1])
if not payload then return {'complete'} end
local first, count = chunk_number(KEYS[2], ARGV[1]) * tonumber(f[2]), count_of(KEYS[2], ARGV[1])
if count > tonumber(f[2]) then unreadable('chunks') end
local attempt = redis.call('HGET', KEYS[7], ARGV[1])
if attempt and not whole(attempt, -MOST_COUNT, MOST_COUNT) then unreadable('attempts') end
local t = now()
local deadline = redis.call('ZSCORE', KEYS[5], ARGV[1])
local token
if deadline and tonumber(deadline) > t and tonumber(deadline) < t + LONGEST_LEASE_S then
  local holder = redis.call('HGET', KEYS[6], ARGV[1]) or ''
  token = string.match(holder, '^(%d+):')
  if holder ~= (token or '') .. ':' .. ARGV[2] then return {'leased'} end
else
  if deadline then note_death(KEYS[9], KEYS[10], ARGV[1], 1) end
  token = next_token(f[3], t)
  attempt = redis.call('HINCRBY', KEYS[7], ARGV[1], 1)
  redis.call('HSET', KEYS[1], 'token', token)
  redis.call('HSET', KEYS[6], ARGV[1], token .. ':' .. ARGV[2])
  redis.call('HSETNX', KEYS[1], 'started_at', stamp(t))
end
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[5], stamp(t + tonumber(ARGV[3])), ARGV[1])
local states = read_bits(KEYS[8], first, count)
local suspects = redis.call('HGET', KEYS[10], ARGV[1]) or ''
-- Behind a semicolon where somebody had trouble with the job: the weight of deaths while its model was loaded.
local troubles = KEYS[1] .. ':troubles'
if redis.call('EXISTS', troubles) == 1 then suspects = suspects .. ';' .. (redis.call('HGET', troubles, 'load') or '') end
return {'claimed', tonumber(token), tonumber(attempt or 1), payload, states, suspects, tonumber(f[4]), f[5] or '', f[6] or '0',
  string.sub(f[7] or '', 1, 64)}
