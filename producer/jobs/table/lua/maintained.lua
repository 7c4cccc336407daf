-- A client has ended its maintenance of a job, or breaks it off: a deletion that has begun stays one.
-- KEYS  1 job  2 gradcam:active
-- ARGV  1 id  2 who  3 '1' if objects may be gone that belong to it
-- gives state | 'gone'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'before', 'maintainer', 'touched')
if not f[1] then return 'gone' end
if f[3] ~= ARGV[2] then return f[1] end
if f[2] == 'forgotten' then
  redis.call('UNLINK', KEYS[1])
  return 'gone'
end
redis.call('SREM', KEYS[2], ARGV[1])
if ARGV[3] == '1' or f[4] then
  redis.call('HSET', KEYS[1], 'maintained_until', 0, 'broken_off', 1)
  return f[1]
end
end_maintenance(KEYS[1], f[2])
return f[2]
