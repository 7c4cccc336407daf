-- Become the one who writes a job's summary, for `lease` seconds.
-- KEYS  1 job  2 finalizer
-- ARGV  1 who  2 lease (s)
-- gives {'yours', end it will enter, time, generation, life} | {'busy'} | {'gone'} | {state}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'outcome', 'failed', 'generation', 'life')
if not f[1] then return {'gone'} end
if f[1] ~= 'finalizing' then return {f[1]} end
local holder = redis.call('GET', KEYS[2])
-- One that could not write it gave it up: `decline`.
local declined = holder and string.match(holder, '^not:(.*)$')
if declined == ARGV[1] or (holder and not declined and holder ~= ARGV[1]) then return {'busy'} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', math.ceil(tonumber(ARGV[2]) * 1000))
local outcome = f[2] or (tonumber(f[3]) > 0 and 'completed_with_errors' or 'succeeded')
return {'yours', outcome, stamp(now()), tonumber(f[4]), f[5] or ''}
