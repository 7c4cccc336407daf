-- Keep facts that only a worker can know (what the weights file was, which layer was meant) with a job that runs.
-- KEYS  1 job
-- ARGV  field, value, ...
-- gives state | 'gone'
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state == 'running' or state == 'paused' then redis.call('HSET', KEYS[1], unpack(ARGV)) end
return state
