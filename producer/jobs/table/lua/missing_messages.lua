-- Find out whether fewer messages are left than chunks wait in a priority: then some were lost, and as many are
-- sent again. A message may be on its way (sent a moment later than its chunk was added, read a moment before it is
-- claimed), so that only what has been missing all along for `grace` seconds counts.
-- KEYS  1 round robin of the priority  2 its queue  3 the queue recovery  4 missing messages of the priority; of the jobs in round_robin also
--       `gradcam:job:<job>` and `gradcam:job:<job>:waiting`
-- ARGV  1 grace (s)  2 at most
-- gives {job, chunk, job, chunk, ...}
local function length(key)
  local found = redis.pcall('LLEN', key) -- another kind of key may be in its place
  return type(found) == 'number' and found or 0
end
local jobs, missing = {}, -length(KEYS[2]) - length(KEYS[3])
for _, job in ipairs(redis.call('ZRANGE', KEYS[1], 0, MOST_ROW - 1)) do
  -- What cannot be read is left out: no message lets anybody take a chunk of it.
  if is_job(job) and ask('HGET', 'gradcam:job:' .. job, 'state') == 'running' and not fault_of('gradcam:job:' .. job) then
    local waiting = redis.call('ZCARD', 'gradcam:job:' .. job .. ':waiting')
    if waiting > 0 then jobs[#jobs + 1] = job end
    missing = missing + waiting
  end
end
if missing <= 0 then
  redis.call('DEL', KEYS[4])
  return {}
end
local t, f = now(), redis.call('HMGET', KEYS[4], 'since', 'least')
local since = math.min(seconds(f[1]) or t, t)
local least = math.min(whole(f[2], 0, MOST_COUNT) or missing, missing)
local found = {}
if t - since + 0.001 >= tonumber(ARGV[1]) then -- a stamp may be rounded up
  local wanted = math.min(least, tonumber(ARGV[2]))
  for _, job in ipairs(jobs) do
    if #found >= 2 * wanted then break end
    local chunks = redis.call('ZRANGE', 'gradcam:job:' .. job .. ':waiting', 0, wanted - #found / 2 - 1)
    for _, chunk in ipairs(chunks) do
      if is_chunk(chunk) then
        found[#found + 1] = job
        found[#found + 1] = tonumber(chunk)
      end
    end
    redis.call('HINCRBY', 'gradcam:job:' .. job, 'republished', #chunks)
  end
  count('resent', #found / 2)
  least = least - #found / 2
end
if least > 0 then
  redis.call('HSET', KEYS[4], 'since', stamp(since), 'least', least)
  redis.call('EXPIRE', KEYS[4], 3600)
else
  redis.call('DEL', KEYS[4])
end
return found
