-- A name may have several lives: a job is deleted, and another is made under its name. Each life has a random word, and
-- each generation in it an epoch: what a worker says counts only for the life and the epoch that it was said of.
-- Epochs go up for ever, also when Redis was wiped: they are never less than the time in milliseconds.
local function next_epoch(last)
  return string.format('%.0f', math.max((tonumber(last) or 0) + 1, math.floor(now() * 1000)))
end

-- The token of a lease never comes twice, also when Redis lost its last second: it is never less than the time in
-- milliseconds.
local function next_token(last, t)
  return string.format('%.0f', math.max(tonumber(last or 0) + 1, math.floor(t * 1000)))
end
