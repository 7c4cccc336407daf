-- A worker says why it cannot do a job, and leaves it alone for a while; where all say so, the job is convicted.
-- KEYS  1 job  2 troubles
-- ARGV  1 worker  2 kind: refused (it cannot do it), error (nobody foresaw it), version (it cannot read it)
--       3 sentence  4 host  5 life and 6 epoch of the claim, where there is one
-- gives state of the job | 'gone'
check(KEYS[1])
local f = redis.call('HMGET', KEYS[1], 'state', 'queue', 'life', 'epoch')
if not f[1] then return 'gone' end
if f[1] ~= 'running' and f[1] ~= 'paused' then return f[1] end
if ARGV[5] and ((f[3] or '') ~= ARGV[5] or (f[4] or '0') ~= ARGV[6]) then return 'gone' end
local name = 'worker:' .. ARGV[1]
local before = redis.call('HGET', KEYS[2], name)
local tries = 1
if before then
  local word = decoded(before)
  if word.kind == ARGV[2] then tries = tries_of(word) + 1 end
end
local alone_s = math.min(30 * 2 ^ math.min(tries - 1, 10), LONGEST_REFUSAL_S)
if ARGV[2] == 'error' then
  strike(KEYS[1], 2)
  -- Others try before this one does again. Where all have, the job has its turn as soon as no other waits.
  local told = {}
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do told[(string.gsub(field, '^worker:', ''))] = true end
  alone_s = undecided(f[2], told, ARGV[1]) and 30 or 0
end
redis.call('HSET', KEYS[2], name, cjson.encode({kind = ARGV[2], tries = tries, sentence = ARGV[3], host = ARGV[4],
  ['until'] = stamp(now() + alone_s)}))
return convict(KEYS[1])
