-- Enter the end, once, and give every key of the job its lifetime.
-- KEYS  1 job  2 gradcam:active  3 finaliser  4.. every other key of the job
-- ARGV  1 who  2 id  3 end  4 time finished
-- gives 'ended' | 'lost' | 'gone' | state
local f = redis.call('HMGET', KEYS[1], 'state', 'lifetime_s')
if not f[1] then return 'gone' end
if f[1] ~= 'finalizing' then return f[1] end
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 'lost' end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'finished_at', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'ends', 1)
redis.call('SREM', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
for i, key in ipairs(KEYS) do
  if i ~= 2 and i ~= 3 then redis.call('EXPIRE', key, math.ceil(tonumber(f[2]))) end
end
return 'ended'
