-- Drop what no job can be called from the lists of jobs: nobody could ever work at it.
-- KEYS  1 gradcam:jobs  2 gradcam:active  3.. round robins
-- ARGV  1 how many of the oldest, and of the newest jobs are looked at
-- gives {how many, the list one of them was in, the beginning of its name} | {0}
local dropped, where, name = 0, '', ''
local function look(key, found, command)
  for _, job in ipairs(found) do
    if not is_job(job) then
      dropped = dropped + redis.call(command, key, job)
      where, name = key, string.sub(job, 1, 80)
    end
  end
end
look(KEYS[1], redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1), 'ZREM')
look(KEYS[1], redis.call('ZRANGE', KEYS[1], -ARGV[1], -1), 'ZREM')
look(KEYS[2], redis.call('SMEMBERS', KEYS[2]), 'SREM')
for i = 3, #KEYS do look(KEYS[i], redis.call('ZRANGE', KEYS[i], 0, -1), 'ZREM') end
return dropped == 0 and {0} or {dropped, where, name}
