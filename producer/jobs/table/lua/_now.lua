-- Seconds by the server's clock, the only clock leases and times are measured with.
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

local function stamp(seconds)
  return string.format('%.3f', seconds)
end
