-- A job goes to the end of the row of its class; numbers, since times in the same millisecond have no order.
local function to_the_end(turns, job)
  local last = redis.call('ZRANGE', turns, -1, -1, 'WITHSCORES')
  redis.call('ZADD', turns, (tonumber(last[2]) or 0) + 1, job)
end
