-- A job whose hash is gone is not there: what is left of it would never be looked at again.
-- KEYS  1 job  2 gradcam:active  3.. every other key of the job
-- ARGV  1 id
-- gives 'forgotten' | 'kept'
if redis.call('EXISTS', KEYS[1]) == 1 then return 'kept' end
redis.call('SREM', KEYS[2], ARGV[1])
for i, key in ipairs(KEYS) do
  if i ~= 2 then redis.call('UNLINK', key) end
end
return 'forgotten'
