-- A paused job goes on. Pointers that workers read and dropped meanwhile are lost ones: the reconciler finds them.
-- KEYS  1 job, and its history
-- ARGV  1 who  2 why
-- gives state | 'gone'
check(KEYS[1])
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state ~= 'paused' then return state end
redis.call('HSET', KEYS[1], 'state', 'running', 'ready_at', stamp(now()))
note_action(KEYS[1], 'resume', ARGV[1], ARGV[2])
return 'running'
