-- One consistent look at a job, at a cost that does not grow with it.
-- KEYS  1 job  2 reasons  3 gradcam:workers  4 gradcam:problems  5 chunks  6 items  7 waiting  8 leases
--       9 timings  10 troubles
-- ARGV  1 seconds after which a silent worker does not count  2.. fields
-- gives {fields, reasons, workers, chunks, chunks not complete, waiting, in flight, timings, troubles, now,
--        a problem of a worker or nil}
-- What a worker said that is gone by now is neither a trouble nor a problem any more.
check(KEYS[1])
local troubles, found, since = {}, redis.call('HGETALL', KEYS[10]), now() - tonumber(ARGV[1])
-- What is not of this job may be of another kind, too: `doctor` tells that.
local workers = ask('ZCOUNT', KEYS[3], stamp(since), '+inf')
if type(workers) ~= 'number' then workers = 0 end
local function alive(worker)
  return workers > 0 and tonumber(redis.call('ZSCORE', KEYS[3], worker) or 0) >= since
end
local problem, told = nil, ask('HGETALL', KEYS[4])
for i = 1, #told, 2 do
  if not problem and alive(told[i]) then problem = told[i + 1] end
end
for i = 1, #found, 2 do
  local worker = string.match(found[i], '^worker:(.*)$')
  if not worker or alive(worker) then
    troubles[#troubles + 1] = found[i]
    troubles[#troubles + 1] = found[i + 1]
  end
end
return {
  redis.call('HMGET', KEYS[1], unpack(ARGV, 2)),
  redis.call('HGETALL', KEYS[2]),
  workers,
  redis.call('HLEN', KEYS[5]),
  redis.call('HLEN', KEYS[6]),
  redis.call('ZCARD', KEYS[7]),
  redis.call('ZCOUNT', KEYS[8], stamp(now()), '+inf'),
  redis.call('HGETALL', KEYS[9]),
  troubles,
  stamp(now()),
  problem,
}
