-- Keep a lease, and say which items are about to be decoded or computed. Any answer but 'renewed' makes the holder stop.
-- KEYS  1 job  2 leases  3 holders  4 marks
-- ARGV  1 chunk  2 token  3 lease (s)  4 life  5 offsets marked, by commas, or 'load' ('' for none); absent: the marks
--       stay as they are
-- gives 'renewed' | 'lost' | 'gone' | state
-- It is called most often, and neither loops nor counts: the job is not looked at as a whole.
local f = redis.call('HMGET', KEYS[1], 'state', 'life')
if not f[1] or (f[2] or '') ~= ARGV[4] then return 'gone' end
if f[1] ~= 'running' then return f[1] end
local holder = redis.call('HGET', KEYS[3], ARGV[1]) or ''
if string.match(holder, '^(%d+):') ~= ARGV[2] then return 'lost' end
redis.call('ZADD', KEYS[2], stamp(now() + tonumber(ARGV[3])), ARGV[1])
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[4], ARGV[1])
elseif ARGV[5] then
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[5])
end
return 'renewed'
