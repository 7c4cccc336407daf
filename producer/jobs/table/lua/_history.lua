-- What was done to a job, the latest last, of which so much is kept. Who did it, and why, are the words of that client.
local MOST_ACTIONS = 50
-- `finish` gives it the job's lifetime; workers of 0.3.0 that end a job give it none.
local KEPT_S = 366 * 86400
local function note_action(job, verb, who, reason)
  local key = job .. ':history'
  redis.call('RPUSH', key, cjson.encode({verb = verb, who = who or '', reason = reason or '', at = stamp(now())}))
  redis.call('LTRIM', key, -MOST_ACTIONS, -1)
  redis.call('EXPIRE', key, KEPT_S)
end
