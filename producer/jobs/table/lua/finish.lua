-- Enter the end, once a generation, and give every key of the job its lifetime. What only a job at work needs goes;
-- a job that failed as a whole keeps its chunks, so that a retry can go on with them.
-- KEYS  1 job  2 gradcam:active  3 finalizer  4 items  5 waiting  6 leases  7 holders  8 attempts  9 marks
--       10 suspects  11.. every other key of the job
-- ARGV  1 who  2 id  3 end  4 time finished  5 generation  6 life  7 '1' if the summary is in the store
-- gives 'ended' | 'lost' | 'gone' | state
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'lifetime_s', 'generation', 'life')
if not f[1] or (f[4] or '') ~= ARGV[6] then return 'gone' end
if f[1] ~= 'finalizing' then return f[1] end
if not f[2] then unreadable('lifetime_s') end
local lifetime_s = math.max(math.ceil(tonumber(f[2])), 1)
if redis.call('GET', KEYS[3]) ~= ARGV[1] or f[3] ~= ARGV[5] then return 'lost' end
-- How many chunks were not complete: their items may go.
redis.call('HSET', KEYS[1], 'open_chunks', redis.call('HLEN', KEYS[4]))
if ARGV[3] == 'failed' then
  for _, chunk in ipairs(redis.call('ZRANGE', KEYS[6], 0, MOST_ROW - 1)) do redis.call('ZADD', KEYS[5], ARGV[4], chunk) end
else
  redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[8], KEYS[10])
  redis.call('HSET', KEYS[1], 'n_open', 0)
end
redis.call('UNLINK', KEYS[6], KEYS[7], KEYS[9])
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'finished_at', ARGV[4], 'summary', ARGV[7])
redis.call('HINCRBY', KEYS[1], 'ends', 1)
count('ended:' .. ARGV[3], 1)
redis.call('SREM', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
for i, key in ipairs(KEYS) do
  if i ~= 2 and i ~= 3 then redis.call('EXPIRE', key, lifetime_s) end
end
return 'ended'
