-- Somebody stops the job: what is done stays done, no bit is touched, nothing more is handed out or taken in.
-- KEYS  1 job, and its history
-- ARGV  1 who  2 why
-- gives state | 'gone'
check(KEYS[1])
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state ~= 'running' and state ~= 'paused' then return state end
redis.call('HSET', KEYS[1], 'outcome', 'cancelled', 'state', 'finalizing')
redis.call('HDEL', KEYS[1], 'reopening')
note_action(KEYS[1], 'cancel', ARGV[1], ARGV[2])
return 'finalizing'
