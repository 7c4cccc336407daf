-- Find chunks of one job whose lease ran out: they wait again. A job without a name whose producer died while sending can
-- never be continued: it fails. A retry whose client died while reopening goes on with what is reopened; a repair whose
-- client died is over, and a deletion says that it was broken off. A job of which Redis has lost a part fails: keys were
-- evicted, or an older copy came back.
-- KEYS  1 job  2 waiting  3 leases  4 holders  5 marks  6 suspects  7 chunks  8 items  9 bits  10 failures
--       11 gradcam:active; and `gradcam:round-robin:<queue>`
-- ARGV  1 at most  2 how long a producer may be silent (s)  3 what to say then  4 how long a retry's client (s)  5 id
--       6 what to say where a part is lost
-- gives {state, time published, chunks whose lease ran out, how many entries were no chunks and are dropped} | {'gone'}
check(KEYS[1])
local state = settled_state(KEYS[1], KEYS[11], ARGV[5])
if not state then return {'gone'} end
local t = now()
local f = redis.call('HMGET', KEYS[1], 'maintained_until', 'ingest', 'name', 'ingest_at', 'reopening', 'reopened_at',
  'queue', 'n_chunks', 'n_open', 'done', 'failed')
if state == 'deleting' and hold_is_over(f[1]) then
  redis.call('HSET', KEYS[1], 'broken_off', 1)
  redis.call('SREM', KEYS[11], ARGV[5])
end
if state ~= 'running' then return {state, '0', {}, 0} end
local dropped = drop_from_set(KEYS[2]) + drop_from_set(KEYS[3])
local function fails(sentence)
  redis.call('HSET', KEYS[1], 'outcome', 'failed', 'error', sentence, 'state', 'finalizing')
  redis.call('HDEL', KEYS[1], 'reopening')
  return {'finalizing', '0', {}, dropped}
end
if f[8] then
  local done, failed, open = tonumber(f[10]), tonumber(f[11]), tonumber(f[9] or 0)
  local function counts_differ()
    return redis.call('HLEN', KEYS[7]) ~= tonumber(f[8]) or redis.call('HLEN', KEYS[8]) ~= open
      or redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3]) ~= open
  end
  -- What is no chunk counts like one.
  if counts_differ() then
    dropped = dropped + drop_from_set(KEYS[2], true) + drop_from_set(KEYS[3], true) + drop_from_hash(KEYS[7])
      + drop_from_hash(KEYS[8])
  end
  if counts_differ() or redis.call('HLEN', KEYS[10]) ~= failed
      or (done + failed > 0 and redis.call('STRLEN', KEYS[9]) == 0) then
    redis.call('HSET', KEYS[1], 'damaged', 1)
    return fails(ARGV[6])
  end
end
if f[7] and not redis.call('ZSCORE', 'gradcam:round-robin:' .. f[7], ARGV[5]) then
  to_the_end('gradcam:round-robin:' .. f[7], ARGV[5])
end
if f[2] == 'open' and f[3] == '' and t - tonumber(f[4] or 0) > tonumber(ARGV[2]) then return fails(ARGV[3]) end
if f[5] and t - tonumber(f[6] or 0) > tonumber(ARGV[4]) then
  redis.call('HDEL', KEYS[1], 'reopening')
  state = finish_if_complete(KEYS[1])
  if state ~= 'running' then return {state, '0', {}, dropped} end
end
local over = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', stamp(t), 'LIMIT', 0, ARGV[1])
if #over < tonumber(ARGV[1]) then
  for _, chunk in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], stamp(t + LONGEST_LEASE_S), '+inf', 'LIMIT', 0, ARGV[1] - #over)) do
    over[#over + 1] = chunk
  end
end
local expired = {}
for _, chunk in ipairs(over) do
  if is_chunk(chunk) then
    expired[#expired + 1] = chunk
    note_death(KEYS[5], KEYS[6], chunk, 1)
    redis.call('ZREM', KEYS[3], chunk)
    redis.call('HDEL', KEYS[4], chunk)
    redis.call('ZADD', KEYS[2], stamp(t), chunk)
  end
end
if #expired > 0 then
  redis.call('HINCRBY', KEYS[1], 'republished', #expired)
  count('expired', #expired)
end
-- Also where nothing is new: the only worker that had not said a word may be gone by now.
return {convict(KEYS[1]), stamp(t), expired, dropped}
