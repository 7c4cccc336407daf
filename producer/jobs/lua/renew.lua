-- Keep a lease, and say which items are about to be decoded or computed. Any answer but 'renewed' makes the holder stop.
-- KEYS  1 job  2 leases  3 holders  4 marks
-- ARGV  1 chunk  2 token  3 lease (s)  4 offsets marked, by commas ('' for none); absent: the marks stay as they are
-- gives 'renewed' | 'lost' | 'gone' | state
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 'gone' end
if state ~= 'running' then return state end
local holder = redis.call('HGET', KEYS[3], ARGV[1]) or ''
if string.match(holder, '^(%d+):') ~= ARGV[2] then return 'lost' end
redis.call('ZADD', KEYS[2], stamp(now() + tonumber(ARGV[3])), ARGV[1])
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[4], ARGV[1])
elseif ARGV[4] then
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
end
return 'renewed'
