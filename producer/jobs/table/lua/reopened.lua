-- Everything that was to be reopened is: the job may end again.
-- KEYS  1 job
-- ARGV  1 generation  2 life
-- gives state | 'gone'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'generation', 'reopening', 'done', 'failed', 'life')
if not f[1] or (f[6] or '') ~= ARGV[2] then return 'gone' end
if f[2] ~= ARGV[1] or not f[3] then return f[1] end
redis.call('HDEL', KEYS[1], 'reopening')
-- Speed is counted from here.
redis.call('HSET', KEYS[1], 'base_n', f[4] + f[5])
return finish_if_complete(KEYS[1])
