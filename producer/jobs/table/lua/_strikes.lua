-- What keeps count of a job in trouble: a process died with a chunk of it in flight, or an error came up that nobody
-- foresaw. Each is a strike. Below two the job is treated as any other; from two on it is put off, 1 s to 30 s, twice as
-- long each time: until `not_before` other jobs go first, and no chunk of it is handed out out of turn. What happens
-- within a second is one accident: a machine that is gone takes many chunks along. Strikes are forgotten after a while.
local FORGET_S, ONE_ACCIDENT_S, LONGEST_S = 300, 1, 30

local function strike(job, least)
  local t = now()
  local f = redis.call('HMGET', job, 'strikes', 'struck_at')
  local since = t - tonumber(f[2] or 0)
  local strikes = since > -FORGET_S and since < FORGET_S and tonumber(f[1] or 0) or 0
  if since >= ONE_ACCIDENT_S or strikes < least then strikes = math.max(strikes + 1, least) end
  redis.call('HSET', job, 'strikes', strikes, 'struck_at', stamp(t))
  if strikes > 1 then
    redis.call('HSET', job, 'not_before', stamp(t + math.min(2 ^ (strikes - 2), LONGEST_S)))
  end
end
