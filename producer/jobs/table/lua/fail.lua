-- Something that every image of the job shares is wrong: the job goes to its end, with one sentence. A worker's verdict
-- counts only as long as it holds the chunk, in that life and generation: what was wrong may have been mended since.
-- KEYS  1 job  2 holders
-- ARGV  1 sentence; of a worker also  2 chunk  3 token  4 life  5 epoch; of a producer also  2 life
-- gives state | 'gone'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'life', 'epoch')
local state = f[1]
if not state then return 'gone' end
if ARGV[3] then
  local mine = string.match(redis.call('HGET', KEYS[2], ARGV[2]) or '', '^(%d+):') == ARGV[3]
  if not mine or (f[2] or '') ~= ARGV[4] or (f[3] or '0') ~= ARGV[5] then return state end
elseif ARGV[2] and f[2] ~= ARGV[2] then
  return 'gone'
end
if state ~= 'running' and state ~= 'paused' then return state end
redis.call('HSET', KEYS[1], 'outcome', 'failed', 'error', ARGV[1], 'state', 'finalizing')
redis.call('HDEL', KEYS[1], 'reopening')
return 'finalizing'
