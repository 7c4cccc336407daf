-- Maintenance (`repairing`, `deleting`) holds a job for one client, as long as that keeps its lease. A repair whose client
-- died is over: nothing of it needs to be taken back. A deletion whose client died is not: some objects may be gone, so
-- that only another deletion may go on from there.
local ENDS = {succeeded = true, completed_with_errors = true, failed = true, cancelled = true}

local LONGEST_HOLD_S = 86400

-- Whether the time is over until which a client holds a job; one far ahead is nobody's.
local function hold_is_over(maintained_until)
  local left = tonumber(maintained_until or 0) - now()
  return left <= 0 or left > LONGEST_HOLD_S
end

local function end_maintenance(job, state)
  redis.call('HSET', job, 'state', state)
  redis.call('HDEL', job, 'before', 'maintainer', 'maintained_until', 'broken_off', 'touched')
end

-- The state of a job; one that is held by nobody any more is given back first.
local function settled_state(job, active, id)
  local f = redis.call('HMGET', job, 'state', 'before', 'maintained_until')
  if f[1] == 'repairing' and hold_is_over(f[3]) then
    end_maintenance(job, f[2])
    redis.call('SREM', active, id)
    return f[2]
  end
  return f[1]
end

-- Whether this client may go on with the maintenance of a job that is held already: its own, or one that was broken off.
local function may_take_over(job, who)
  local f = redis.call('HMGET', job, 'maintainer', 'maintained_until')
  return f[1] == who or hold_is_over(f[2])
end
