-- Record ends of items: pending -> done|failed, failed -> done. Counters move only where a bit changes, so that a
-- repeated, late or lost call counts nothing twice. The holder of an old token may record `done` and nothing else, and
-- nothing of an earlier life or generation: what it means may have been deleted since.
-- KEYS  1 job  2 chunks  3 items  4 waiting  5 leases  6 holders  7 attempts  8 bits  9 failures  10 reasons
--       11 marks  12 suspects  13 classes  14 timings
-- ARGV  1 chunk  2 token  3 lease (s)  4 life  5 epoch  6 how many done  7 how many stages
--       then offset and class of each done (class_of), then stage and microseconds, then offset, reason, failure (JSON) of each failed
-- gives {'committed', newly done, newly failed, 1 if the chunk is complete, state} | {'gone'|state of a job that has ended}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'started_at', 'chunk_size', 'life', 'epoch')
local state = f[1]
if not state or (f[4] or '') ~= ARGV[4] or (f[5] or '0') ~= ARGV[5] then return {'gone'} end
if state ~= 'running' and state ~= 'paused' then return {state} end
local chunk, token = ARGV[1], ARGV[2]
local stages = 7 + 2 * tonumber(ARGV[6])
local failures = stages + 2 * tonumber(ARGV[7])
local first = chunk_number(KEYS[2], chunk) * tonumber(f[3])
local count = count_of(KEYS[2], chunk)
if count == 0 then return {'gone'} end
if count > tonumber(f[3]) then unreadable('chunks') end
local mine = string.match(redis.call('HGET', KEYS[6], chunk) or '', '^(%d+):') == token
local states = read_bits(KEYS[8], first, count)
local done, failed, healed, verdicts = 0, 0, 0, {}

for i = 8, stages, 2 do
  local offset = tonumber(ARGV[i])
  local old = states[offset + 1]
  if old == 0 or old == 2 then
    if old == 2 then
      forget_failure(KEYS[9], KEYS[10], first + offset)
      healed = healed + 1
    end
    write_bit(KEYS[8], first + offset, 1)
    local class, verdict = class_of(ARGV[i + 1])
    if class ~= '' then count_up(KEYS[13], class, 1) end
    if verdict then verdicts[verdict] = (verdicts[verdict] or 0) + 1 end
    states[offset + 1] = 1
    done = done + 1
  end
end
if mine then
  for i = failures + 1, #ARGV, 3 do
    local offset = tonumber(ARGV[i])
    if states[offset + 1] == 0 then
      write_bit(KEYS[8], first + offset, 2)
      states[offset + 1] = 2
      redis.call('HSET', KEYS[9], first + offset, ARGV[i + 2])
      count_up(KEYS[10], ARGV[i + 1], 1)
      failed = failed + 1
    end
  end
end

local pending = 0
for _, value in ipairs(states) do
  if value == 0 then pending = pending + 1 end
end
if pending == 0 then
  redis.call('HINCRBY', KEYS[1], 'n_open', -redis.call('HDEL', KEYS[3], chunk))
  redis.call('ZREM', KEYS[4], chunk)
  redis.call('ZREM', KEYS[5], chunk)
  redis.call('HDEL', KEYS[6], chunk)
  redis.call('HDEL', KEYS[7], chunk)
  redis.call('HDEL', KEYS[11], chunk)
  redis.call('HDEL', KEYS[12], chunk, 'reclaimed:' .. chunk)
elseif mine then
  redis.call('ZADD', KEYS[5], stamp(now() + tonumber(ARGV[3])), chunk)
end
count_verdicts(KEYS[1], verdicts, 1)
if done + failed > 0 then
  for i = stages + 1, failures, 2 do count_up(KEYS[14], ARGV[i], ARGV[i + 1]) end
  local all_done = redis.call('HINCRBY', KEYS[1], 'done', done)
  local all_failed = redis.call('HINCRBY', KEYS[1], 'failed', failed - healed)
  -- Two marks, at least 30 s apart, are enough for a speed over the last minute at O(1).
  local t, finished = now(), all_done + all_failed
  local mark = redis.call('HGET', KEYS[1], 'mark_at') or f[2] or stamp(t)
  if t - tonumber(mark) >= 30 then
    redis.call('HSET', KEYS[1], 'last_mark_at', mark, 'last_mark_n', redis.call('HGET', KEYS[1], 'mark_n') or 0,
      'mark_at', stamp(t), 'mark_n', finished)
  end
  redis.call('HSET', KEYS[1], 'progress_at', stamp(t))
end
return {'committed', done, failed, pending == 0 and 1 or 0, finish_if_complete(KEYS[1])}
