-- Make a job; making the same one again changes nothing.
-- KEYS  1 job  2 gradcam:jobs  3 gradcam:active  4 turns of its class
-- ARGV  1 id  2 spec (JSON)  3 name or ''  4 network  5 queue  6 lifetime (s)  7 chunk size  8 generation
-- gives 'created' | 'same' | 'differs'
local spec = redis.call('HGET', KEYS[1], 'spec')
if spec then
  return spec == ARGV[2] and 'same' or 'differs'
end
local t = now()
redis.call('HSET', KEYS[1], 'spec', ARGV[2], 'name', ARGV[3], 'network', ARGV[4], 'queue', ARGV[5],
  'lifetime_s', ARGV[6], 'chunk_size', ARGV[7], 'state', 'running', 'ingest', 'open', 'generation', ARGV[8], 'token', 0,
  'total', 0, 'done', 0, 'failed', 0, 'ends', 0, 'created_at', stamp(t), 'ingest_at', stamp(t))
redis.call('ZADD', KEYS[2], stamp(t), ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
to_the_end(KEYS[4], ARGV[1])
return 'created'
