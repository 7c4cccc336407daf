-- A job that the store brings back has its facts and its history again. It is paused until all of it is there: no worker
-- explains what was explained already. Asked again, where the one who did it broke off, it is paused again.
-- KEYS  1 job, and its history  2 gradcam:jobs
-- ARGV  1 id  2 life  3 time created  4 who  5 how many actions its history had, then these (JSON), then field and value of
--       each fact
-- gives state | 'gone'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'life', 'recovered')
if not f[1] or f[2] ~= ARGV[2] then return 'gone' end
if f[1] ~= 'running' and f[1] ~= 'paused' then return f[1] end
local actions = 5 + tonumber(ARGV[5])
if not f[3] then
  for i = 6, actions do redis.call('RPUSH', KEYS[1] .. ':history', ARGV[i]) end
  -- The weights that a worker has loaded meanwhile stay those of the job.
  for i = actions + 1, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
  redis.call('HSET', KEYS[1], 'created_at', ARGV[3], 'recovered', 1)
  redis.call('ZADD', KEYS[2], 'XX', ARGV[3], ARGV[1])
end
redis.call('HSET', KEYS[1], 'state', 'paused')
note_action(KEYS[1], 'recover', ARGV[4], '')
return 'paused'
