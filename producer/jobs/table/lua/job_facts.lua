-- What metrics need of some jobs, at a cost that does not grow with their images. A job that is gone, or whose keys are of
-- another kind, has no facts and takes none from the others.
-- KEYS  of each job: its hash, waiting, leases
-- ARGV  fields of the hash
-- gives {of each job {fields, waiting, leased, leases that ran out, oldest time of publishing or nil} or {}}
local t = stamp(now())
local function asked(...)
  local found = redis.pcall(...)
  if type(found) == 'table' and found.err then return nil end
  return found
end
local all = {}
for i = 1, #KEYS, 3 do
  local fields = asked('HMGET', KEYS[i], unpack(ARGV))
  local waiting, leased = asked('ZCARD', KEYS[i + 1]), asked('ZCARD', KEYS[i + 2])
  local one = {}
  if fields and waiting and leased then
    local overdue = leased > 0 and redis.call('ZCOUNT', KEYS[i + 2], '-inf', t) or 0
    local first = waiting > 0 and redis.call('ZRANGE', KEYS[i + 1], 0, 0, 'WITHSCORES')[2]
    one = {fields, waiting, leased, overdue, first}
  end
  all[#all + 1] = one
end
return all
