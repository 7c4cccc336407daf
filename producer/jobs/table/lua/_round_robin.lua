-- A job goes to the end of the row of its priority; numbers, since times in the same millisecond have no order.
local function to_the_end(round_robin, job)
  local last = redis.call('ZRANGE', round_robin, -1, -1, 'WITHSCORES')
  redis.call('ZADD', round_robin, (tonumber(last[2]) or 0) + 1, job)
end
