-- So many jobs of a priority are looked at in one call.
local MOST_ROW = 100000

-- A job goes to the end of the row of its priority; numbers, since times in the same millisecond have no order.
local function to_the_end(round_robin, job)
  local last = ask('ZRANGE', round_robin, -1, -1, 'WITHSCORES')
  if last.err then unreadable_key(round_robin) end
  local place = tonumber(last[2]) or 0
  if not (place < MOST_COUNT) then
    -- Beyond that one more is the same number, and nobody has a turn but the first by name.
    for n, each in ipairs(redis.call('ZRANGE', round_robin, 0, MOST_ROW - 1)) do
      redis.call('ZADD', round_robin, n, each)
      place = n
    end
  end
  redis.call('ZADD', round_robin, place + 1, job)
end
