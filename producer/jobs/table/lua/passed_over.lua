-- Jobs that stand before the one that was picked last: where a chunk of theirs waits, a worker could have taken that.
-- KEYS  of each priority: what `next_chunk` keeps of its last pick, round robin
-- ARGV  1 at most so many of a priority
-- gives {of each priority {when the last one was picked, jobs} or {}}
local all = {}
for i = 1, #KEYS, 2 do
  local f = ask('HMGET', KEYS[i], 'place', 'at')
  local place, at = whole(f[1], 0, MOST_COUNT), seconds(f[2])
  local jobs = place and at and ask('ZRANGEBYSCORE', KEYS[i + 1], '-inf', '(' .. f[1], 'LIMIT', 0, tonumber(ARGV[1]))
  all[#all + 1] = jobs and not jobs.err and {f[2], jobs} or {}
end
return all
