-- Nothing more is handed out until the job is resumed; holders stop after the batch on the device, which may be committed.
-- KEYS  1 job, and its history
-- ARGV  1 who  2 why
-- gives state | 'gone'
check(KEYS[1])
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state ~= 'running' then return state end
redis.call('HSET', KEYS[1], 'state', 'paused')
note_action(KEYS[1], 'pause', ARGV[1], ARGV[2])
return 'paused'
