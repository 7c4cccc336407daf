-- Find chunks of one job whose lease ran out: they wait again. A job without a name whose producer died while sending can
-- never be continued: it fails. A retry whose client died while reopening goes on with what is reopened.
-- KEYS  1 job  2 waiting  3 leases  4 holders  5 marks  6 suspects
-- ARGV  1 at most  2 how long a producer may be silent (s)  3 what to say then  4 how long a retry's client (s)
-- gives {state, time published, chunks whose lease ran out} | {'gone'}
local f = redis.call('HMGET', KEYS[1], 'state', 'ingest', 'name', 'ingest_at', 'reopening', 'reopened_at')
local state = f[1]
if not state then return {'gone'} end
if state ~= 'running' then return {state, '0', {}} end
local t = now()
if f[2] == 'open' and f[3] == '' and t - tonumber(f[4]) > tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'outcome', 'failed', 'error', ARGV[3], 'state', 'finalizing')
  return {'finalizing', '0', {}}
end
if f[5] and t - tonumber(f[6]) > tonumber(ARGV[4]) then
  redis.call('HDEL', KEYS[1], 'reopening')
  state = finish_if_complete(KEYS[1])
  if state ~= 'running' then return {state, '0', {}} end
end
local expired = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', stamp(t), 'LIMIT', 0, ARGV[1])
for _, chunk in ipairs(expired) do
  note_death(KEYS[5], KEYS[6], chunk, 1)
  redis.call('ZREM', KEYS[3], chunk)
  redis.call('HDEL', KEYS[4], chunk)
  redis.call('ZADD', KEYS[2], stamp(t), chunk)
end
if #expired > 0 then redis.call('HINCRBY', KEYS[1], 'republished', #expired) end
return {state, stamp(t), expired}
