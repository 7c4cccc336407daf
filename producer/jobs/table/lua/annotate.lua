-- Keep facts that only a worker can know (what the weights file was, which layer was meant) with a job that runs.
-- KEYS  1 job
-- ARGV  1 life, or '' for any  2.. field, value, ...
-- gives state | 'gone'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'life')
if not f[1] or (ARGV[1] ~= '' and f[2] ~= ARGV[1]) then return 'gone' end
if f[1] == 'running' or f[1] == 'paused' then redis.call('HSET', KEYS[1], unpack(ARGV, 2)) end
return f[1]
