-- Begin a new generation of a job that has ended: its keys live on, and until `reopened` it cannot end again.
-- The same retry id asking again (its first reply was lost) gets the same generation.
-- KEYS  1 job  2 gradcam:active  3 turns of its class  4 reasons  5.. every other key of the job
-- ARGV  1 id  2 retry id  3 reason or ''  4 '1' where done items are reopened as well (a repair)
-- gives {'begun', generation} | {'nothing'} | {'open'} | {'gone'} | {state}
local f = redis.call('HMGET', KEYS[1], 'state', 'generation', 'retry', 'ingest', 'failed')
if not f[1] then return {'gone'} end
if f[3] == ARGV[2] then return {'begun', tonumber(f[2])} end
if f[1] ~= 'succeeded' and f[1] ~= 'completed_with_errors' and f[1] ~= 'failed' then return {f[1]} end
if f[4] ~= 'closed' then return {'open'} end
local wanted = ARGV[3] == '' and tonumber(f[5]) or tonumber(redis.call('HGET', KEYS[4], ARGV[3]) or 0)
-- A job that failed as a whole has images that never had their turn.
if wanted == 0 and ARGV[4] ~= '1' and (f[1] ~= 'failed' or ARGV[3] ~= '') then return {'nothing'} end
for i, key in ipairs(KEYS) do
  if i ~= 2 and i ~= 3 then redis.call('PERSIST', key) end
end
redis.call('HSET', KEYS[1], 'state', 'running', 'generation', f[2] + 1, 'retry', ARGV[2], 'reopening', 0,
  'reopened_at', stamp(now()))
redis.call('HDEL', KEYS[1], 'outcome', 'error', 'finished_at', 'started_at', 'progress_at', 'mark_at', 'mark_n',
  'last_mark_at', 'last_mark_n', 'open_chunks')
redis.call('SADD', KEYS[2], ARGV[1])
to_the_end(KEYS[3], ARGV[1])
return {'begun', f[2] + 1}
