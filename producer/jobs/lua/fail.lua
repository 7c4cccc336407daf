-- Something that every image of the job shares is wrong: the job goes to its end, with one sentence.
-- KEYS  1 job
-- ARGV  1 sentence
-- gives state | 'gone'
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state ~= 'running' and state ~= 'paused' then return state end
redis.call('HSET', KEYS[1], 'outcome', 'failed', 'error', ARGV[1], 'state', 'finalizing')
redis.call('HDEL', KEYS[1], 'reopening')
return 'finalizing'
