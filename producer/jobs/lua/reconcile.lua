-- Find chunks of one job that nobody works at and no message points to any more, and give them a new publish time:
-- those whose lease ran out, and those that wait since before `lost` (see worker/reconcile.py for how that time is
-- found). A job without a name whose producer died while sending can never be continued: it fails. A retry whose
-- client died while reopening goes on with what is reopened.
-- KEYS  1 job  2 waiting  3 leases  4 holders  5 marks  6 suspects
-- ARGV  1 lost (time)  2 at most  3 how long a producer may be silent (s)  4 what to say then  5 a retry's client (s)
-- gives {state, time published, chunks with an expired lease, chunks with a lost pointer} | {'gone'}
local f = redis.call('HMGET', KEYS[1], 'state', 'ingest', 'name', 'ingest_at', 'reopening', 'reopened_at')
local state = f[1]
if not state then return {'gone'} end
if state ~= 'running' then return {state, '0', {}, {}} end
local t = now()
if f[2] == 'open' and f[3] == '' and t - tonumber(f[4]) > tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], 'outcome', 'failed', 'error', ARGV[4], 'state', 'finalizing')
  return {'finalizing', '0', {}, {}}
end
if f[5] and t - tonumber(f[6]) > tonumber(ARGV[5]) then
  redis.call('HDEL', KEYS[1], 'reopening')
  state = finish_if_complete(KEYS[1])
  if state ~= 'running' then return {state, '0', {}, {}} end
end
local expired = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', stamp(t), 'LIMIT', 0, ARGV[2])
local lost = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, chunk in ipairs(expired) do
  note_death(KEYS[5], KEYS[6], chunk, 1)
  redis.call('ZREM', KEYS[3], chunk)
  redis.call('HDEL', KEYS[4], chunk)
  redis.call('ZADD', KEYS[2], stamp(t), chunk)
end
for _, chunk in ipairs(lost) do
  redis.call('ZADD', KEYS[2], stamp(t), chunk)
end
if #expired + #lost > 0 then redis.call('HINCRBY', KEYS[1], 'republished', #expired + #lost) end
return {state, stamp(t), expired, lost}
