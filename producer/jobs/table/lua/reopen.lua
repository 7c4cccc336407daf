-- Items of one chunk become pending again, in the generation that `retry` began; chunks come in ascending order, so
-- that one which is asked for twice is reopened once. The counters follow the bits.
-- KEYS  1 job  2 items  3 waiting  4 leases  5 attempts  6 bits  7 failures  8 reasons  9 suspects  10 classes
-- ARGV  1 chunk  2 generation  3 payload: the chunk's items, those of before and those reopened  4 life
--       then offset of each, and its class where it was done (class_of)
-- gives {'reopened', time published, how many} | {'same'} | {'gone'} | {state}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'generation', 'reopening', 'chunk_size', 'life')
if not f[1] or (f[5] or '') ~= ARGV[4] then return {'gone'} end
if f[1] ~= 'running' and f[1] ~= 'paused' then return {f[1]} end
if f[2] ~= ARGV[2] or not f[3] or tonumber(ARGV[1]) < tonumber(f[3]) then return {'same'} end
local first = chunk_number(KEYS[1] .. ':chunks', ARGV[1]) * tonumber(f[4])
for i = 5, #ARGV, 2 do
  if not whole(ARGV[i], 0, tonumber(f[4]) - 1) then unreadable('failures') end
end
local done, failed, verdicts = 0, 0, {}
for i = 5, #ARGV, 2 do
  local index = first + tonumber(ARGV[i])
  local state = read_bits(KEYS[6], index, 1)[1]
  if state == 1 then
    done = done + 1
    local class, verdict = class_of(ARGV[i + 1])
    if class ~= '' and count_up(KEYS[10], class, -1) <= 0 then
      redis.call('HDEL', KEYS[10], class)
    end
    if verdict then verdicts[verdict] = (verdicts[verdict] or 0) + 1 end
  end
  if state == 2 then
    failed = failed + 1
    forget_failure(KEYS[7], KEYS[8], index)
  end
  write_bit(KEYS[6], index, 0)
end
local t = stamp(now())
redis.call('HINCRBY', KEYS[1], 'done', -done)
redis.call('HINCRBY', KEYS[1], 'failed', -failed)
count_verdicts(KEYS[1], verdicts, -1)
redis.call('HSET', KEYS[1], 'reopening', ARGV[1] + 1, 'reopened_at', t)
redis.call('HINCRBY', KEYS[1], 'n_open', redis.call('HSET', KEYS[2], ARGV[1], ARGV[3]))
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('HDEL', KEYS[9], ARGV[1], 'reclaimed:' .. ARGV[1])
-- Its holder, where there is one, finds the chunk incomplete and gives it back.
if not redis.call('ZSCORE', KEYS[4], ARGV[1]) then redis.call('ZADD', KEYS[3], t, ARGV[1]) end
return {'reopened', t, done + failed}
