-- Make a job; making the same one again changes nothing. `since` is the first token that its records may have.
-- KEYS  1 job  2 gradcam:jobs  3 gradcam:active  4 round robin of its priority
-- ARGV  1 id  2 spec (JSON)  3 name or ''  4 network  5 queue  6 lifetime (s)  7 chunk size  8 a life, if it is new
--       9 the span of its submission or ''
-- gives {'created' | 'same', life, since} | {'differs'} | {state of one that is being repaired or deleted}
check(KEYS[1])
local state = settled_state(KEYS[1], KEYS[3], ARGV[1])
if state then
  if state == 'repairing' or state == 'deleting' then return {state} end
  local f = redis.call('HMGET', KEYS[1], 'spec', 'life', 'since')
  if f[1] ~= ARGV[2] then return {'differs'} end
  return {'same', f[2] or '', f[3] or '0'}
end
local t, epoch = now(), next_epoch(0)
-- A client of 0.3.0 that deleted a job of this name knew of no history.
redis.call('UNLINK', KEYS[1] .. ':history')
redis.call('ZADD', KEYS[2], stamp(t), ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
to_the_end(KEYS[4], ARGV[1])
redis.call('HSET', KEYS[1], 'spec', ARGV[2], 'name', ARGV[3], 'network', ARGV[4], 'queue', ARGV[5],
  'lifetime_s', ARGV[6], 'chunk_size', ARGV[7], 'state', 'running', 'ingest', 'open', 'generation', 1, 'token', 0,
  'life', ARGV[8], 'epoch', epoch, 'since', epoch, 'n_chunks', 0, 'n_open', 0, 'total', 0, 'done', 0, 'failed', 0, 'ends', 0, 'created_at', stamp(t), 'ingest_at', stamp(t))
if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], 'traceparent', ARGV[9]) end
return {'created', ARGV[8], epoch}
