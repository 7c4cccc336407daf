-- Take back a job that was just made, of which nothing was sent: its name belongs to another one in the store.
-- KEYS  1 job  2 gradcam:jobs  3 gradcam:active  4 round robin of its priority
-- ARGV  1 id  2 life
-- gives 'discarded' | 'kept'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'life', 'total', 'ingest', 'state')
if f[1] ~= ARGV[2] or f[2] ~= '0' or f[3] ~= 'open' or f[4] ~= 'running' then return 'kept' end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 'discarded'
