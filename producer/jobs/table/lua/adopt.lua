-- A submission found what the store knows of its job: records from which token on count.
-- KEYS  1 job
-- ARGV  1 life  2 since
-- gives state | 'gone'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'life')
if not f[1] or f[2] ~= ARGV[1] then return 'gone' end
redis.call('HSET', KEYS[1], 'since', ARGV[2])
return f[1]
