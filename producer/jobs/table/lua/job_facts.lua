-- What metrics need of some jobs, at a cost that does not grow with their images. A job that is gone, or whose keys are of
-- another kind, has no facts and takes none from the others. What keeps a job from going on is asked only of one that has
-- not for a moment.
-- KEYS  of each job: its hash, waiting, leases, marks, troubles
-- ARGV  1 how long a moment is (s)  2 most chunks, or workers, that are looked at for why  3.. fields of the hash: first
--       how many chunks are open, then when something was recorded last
-- gives {of each job {fields, waiting, leased, leases that ran out, oldest time of publishing or '', '1' if each chunk in
--        flight has its model loading, workers that have refused it or cannot read it} or {}}
local t = stamp(now())
local function asked(...)
  local found = redis.pcall(...)
  if type(found) == 'table' and found.err then return nil end
  return found
end

-- Whether each chunk in flight has its model loading.
local function all_load(leases, marks)
  local held = redis.call('ZRANGEBYSCORE', leases, t, '+inf', 'LIMIT', 0, tonumber(ARGV[2]))
  if #held == 0 then return '' end
  for _, mark in ipairs(asked('HMGET', marks, unpack(held)) or {''}) do
    if mark ~= 'load' then return '' end
  end
  return '1'
end

local function refused_by(troubles)
  local workers, count = {}, asked('HLEN', troubles)
  if not count or count == 0 or count > tonumber(ARGV[2]) then return workers end
  local told = redis.call('HGETALL', troubles)
  for i = 1, #told, 2 do
    local worker, kind = string.match(told[i], '^worker:(.*)$'), decoded(told[i + 1]).kind
    if worker and (kind == 'refused' or kind == 'version') then workers[#workers + 1] = worker end
  end
  return workers
end

local function facts_of(job, waiting, leases, marks, troubles)
  local fields, leased = asked('HMGET', job, unpack(ARGV, 3)), asked('ZCARD', leases)
  if not fields or not leased then return {} end
  -- What is open and held by nobody waits; jobs of release 0.1.0 have no such count.
  local open = whole(fields[1], 0, MOST_COUNT)
  local count = open and math.max(open - leased, 0) or asked('ZCARD', waiting)
  local first = {}
  if count and count > 0 then first = asked('ZRANGE', waiting, 0, 0, 'WITHSCORES') end
  if not count or not first then return {} end
  local overdue = leased > 0 and redis.call('ZCOUNT', leases, '-inf', t) or 0
  local still = t - (seconds(fields[2]) or 0) >= tonumber(ARGV[1])
  return {fields, count, leased, overdue, first[2] or '',
    still and leased > overdue and all_load(leases, marks) or '',
    still and leased == 0 and count > 0 and refused_by(troubles) or {}}
end

local all = {}
for i = 1, #KEYS, 5 do all[#all + 1] = facts_of(KEYS[i], KEYS[i + 1], KEYS[i + 2], KEYS[i + 3], KEYS[i + 4]) end
return all
