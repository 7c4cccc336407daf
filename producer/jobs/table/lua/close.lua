-- No more items come. Refused when the chunks are not those that were sent (Redis may have lost its last second).
-- KEYS  1 job  2 chunks
-- ARGV  1 chunks sent  2 items sent  3 life, or '' for any
-- gives {'closed', state} | {'missing', chunks here, items here} | {'gone'}
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'ingest', 'total', 'state', 'life')
if not f[1] or (ARGV[3] ~= '' and f[4] ~= ARGV[3]) then return {'gone'} end
local chunks = redis.call('HLEN', KEYS[2])
if chunks ~= tonumber(ARGV[1]) or f[2] ~= ARGV[2] then return {'missing', tostring(chunks), f[2]} end
redis.call('HSET', KEYS[1], 'ingest', 'closed')
return {'closed', finish_if_complete(KEYS[1])}
