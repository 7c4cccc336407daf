-- Who was to write a job's summary cannot: another one may, at once; the same not before a while has passed.
-- KEYS  1 job  2 finalizer  3 gradcam:workers
-- ARGV  1 who  2 a while (s)  3 '1' where the job is to end without its summary if nobody is left to write it
-- gives 'declined' | 'last' | 'lost'
check(KEYS[1])
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'state') ~= 'finalizing' then return 'lost' end
local declined = redis.call('HINCRBY', KEYS[1], 'declined', 1)
if ARGV[3] == '1' and declined >= redis.call('ZCOUNT', KEYS[3], stamp(now() - SILENT_S), '+inf') then return 'last' end
redis.call('SET', KEYS[2], 'not:' .. ARGV[1], 'PX', math.ceil(tonumber(ARGV[2]) * 1000))
return 'declined'
