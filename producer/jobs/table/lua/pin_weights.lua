-- A job is explained by one set of weights: those that a worker was the first to load.
-- KEYS  1 job
-- ARGV  1 life  2 SHA-256 of the weights
-- gives {'pinned', SHA-256 of those that count} | {'gone' | state of a job that does not run}
local f = redis.call('HMGET', KEYS[1], 'state', 'life')
if not f[1] or (f[2] or '') ~= ARGV[1] then return {'gone'} end
if f[1] ~= 'running' and f[1] ~= 'paused' then return {f[1]} end
redis.call('HSETNX', KEYS[1], 'weights_sha256', ARGV[2])
return {'pinned', redis.call('HGET', KEYS[1], 'weights_sha256')}
