-- Begin a new generation of a job that has ended: its keys live on, and until `reopened` it cannot end again.
-- The same retry id asking again (its first reply was lost) gets the same generation. A repair asks with the id under
-- which it holds the job. A submission goes on so with a job that failed while it was being sent: nothing is reopened.
-- KEYS  1 job  2 gradcam:active  3 round robin of its priority  4 reasons  5.. every other key of the job
-- ARGV  1 id  2 retry id  3 reason or ''  4 '', 'repair' (done items are reopened as well) or 'submit'  5 who  6 why
-- gives {'begun', generation, life} | {'nothing'} | {'open'} | {'damaged'} | {'gone'} | {state}
check(KEYS[1])
if redis.call('HGET', KEYS[1], 'retry') == ARGV[2] then
  local f = redis.call('HMGET', KEYS[1], 'generation', 'life')
  return {'begun', tonumber(f[1]), f[2] or ''}
end
local state = settled_state(KEYS[1], KEYS[2], ARGV[1])
local f = redis.call('HMGET', KEYS[1], 'generation', 'ingest', 'failed', 'life', 'epoch', 'before', 'maintainer', 'damaged',
  'done')
if not state then return {'gone'} end
if state == 'repairing' and ARGV[4] == 'repair' and f[7] == ARGV[2] then state = f[6] end
if state ~= 'succeeded' and state ~= 'completed_with_errors' and state ~= 'failed' then return {state} end
if f[8] then return {'damaged'} end
if ARGV[4] == 'submit' then
  if state ~= 'failed' or f[2] ~= 'open' then return {state} end
else
  if f[2] ~= 'closed' then return {'open'} end
  local wanted = ARGV[3] == '' and tonumber(f[3]) or tonumber(redis.call('HGET', KEYS[4], ARGV[3]) or 0)
  -- A job that failed as a whole has images that never had their turn.
  if wanted == 0 and ARGV[4] == '' and (state ~= 'failed' or ARGV[3] ~= '') then return {'nothing'} end
end
for i, key in ipairs(KEYS) do
  if i ~= 2 and i ~= 3 then redis.call('PERSIST', key) end
end
end_maintenance(KEYS[1], 'running')
local t = stamp(now())
redis.call('HSET', KEYS[1], 'generation', f[1] + 1, 'epoch', next_epoch(f[5]), 'retry', ARGV[2], 'ready_at', t)
if ARGV[4] == 'submit' then
  redis.call('HSET', KEYS[1], 'ingest_at', t)
else
  redis.call('HSET', KEYS[1], 'reopening', 0, 'reopened_at', t)
end
redis.call('UNLINK', KEYS[1] .. ':troubles')
-- Nothing was explained by the weights that it had: others may take their place.
if tonumber(f[9] or 0) == 0 then redis.call('HDEL', KEYS[1], 'weights_sha256') end
redis.call('HDEL', KEYS[1], 'strikes', 'not_before', 'declined')
redis.call('HDEL', KEYS[1], 'outcome', 'error', 'finished_at', 'started_at', 'progress_at', 'mark_at', 'mark_n',
  'last_mark_at', 'last_mark_n', 'open_chunks', 'summary')
redis.call('SADD', KEYS[2], ARGV[1])
to_the_end(KEYS[3], ARGV[1])
note_action(KEYS[1], ARGV[4] == '' and 'retry' or ARGV[4], ARGV[5], ARGV[6])
return {'begun', f[1] + 1, f[4] or ''}
