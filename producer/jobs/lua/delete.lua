-- Forget a job that has ended, with all its keys.
-- KEYS  1 job  2 gradcam:jobs  3 gradcam:active  4.. every other key of the job
-- ARGV  1 id
-- gives 'deleted' | 'gone' | state of a job that has not ended
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state == 'running' or state == 'paused' or state == 'finalizing' then return state end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
for i, key in ipairs(KEYS) do
  if i ~= 2 and i ~= 3 then redis.call('UNLINK', key) end
end
return 'deleted'
