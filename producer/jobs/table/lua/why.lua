-- What bears on a job that does not go on: who could work at it, what keeps them from it, and what is before it. Asked only of
-- a job that waits. It looks at so many workers and jobs and no more, so that its cost has a bound.
-- KEYS  1 job  2 marks  3 leases  4 troubles  5 gradcam:workers  6 gradcam:queues  7 gradcam:problems; also the round robins, and of
--       the jobs in them hash, `…:waiting` and `…:leases`
-- ARGV  1 id  2 seconds after which a silent worker does not count  3 most workers  4 most jobs of a priority
-- gives {priority, chunks in flight, of these loading, seconds delayed, seconds since images were sent, workers alive, that read the priority, faulty ones of these,
--        a fault, those that refuse the job, a refusal, images ahead, images in hand, '1' if there are more jobs}
check(KEYS[1])
local t = now()
local own = redis.call('HMGET', KEYS[1], 'queue', 'not_before', 'ingest_at')
local queue = own[1] or 'default'
local delayed_s = math.max((seconds(own[2]) or 0) - t, 0)
if delayed_s > LONGEST_S then delayed_s = 0 end -- as `next_chunk` has it
local silent_s = math.max(t - (seconds(own[3]) or t), 0)

local function in_flight(leases)
  local count = ask('ZCOUNT', leases, stamp(t), '+inf')
  return type(count) == 'number' and count or 0
end

local loading, held = 0, redis.call('ZRANGEBYSCORE', KEYS[3], stamp(t), '+inf', 'LIMIT', 0, tonumber(ARGV[3]))
if #held > 0 then
  for _, mark in ipairs(redis.call('HMGET', KEYS[2], unpack(held))) do
    if mark == 'load' then loading = loading + 1 end
  end
end

local alive = ask('ZRANGEBYSCORE', KEYS[5], stamp(t - tonumber(ARGV[2])), '+inf', 'LIMIT', 0, tonumber(ARGV[3]))
local readers = {}
if not alive.err and #alive > 0 then
  local reads = ask('HMGET', KEYS[6], unpack(alive))
  for i, worker in ipairs(alive) do
    local its = reads[i] or nil
    -- One that names none reads all.
    if not its or string.find(',' .. its .. ',', ',' .. queue .. ',', 1, true) then readers[#readers + 1] = worker end
  end
end
local faulty, fault, refusing, refusal = 0, '', 0, ''
local problems = ask('HLEN', KEYS[7])
local troubled = redis.call('HLEN', KEYS[4]) > 0
-- Most of the time nobody has said anything.
if #readers > 0 and (troubled or type(problems) == 'number' and problems > 0) then
  local told, words = ask('HMGET', KEYS[7], unpack(readers)), {}
  if troubled then
    local names = {}
    for i, worker in ipairs(readers) do names[i] = 'worker:' .. worker end
    words = redis.call('HMGET', KEYS[4], unpack(names))
  end
  for i = 1, #readers do
    local kind = words[i] and decoded(words[i]).kind
    if told[i] then
      faulty, fault = faulty + 1, told[i]
    elseif kind == 'refused' or kind == 'version' then
      refusing, refusal = refusing + 1, tostring(decoded(words[i]).sentence)
    end
  end
end

local ahead, in_hand, more, before = 0, 0, '', true
for _, priority in ipairs({'high', 'default', 'low'}) do
  local row = ask('ZRANGE', 'gradcam:round-robin:' .. priority, 0, tonumber(ARGV[4]))
  if row.err then row = {} end
  for n, job in ipairs(row) do
    if n > tonumber(ARGV[4]) then
      more = '1'
    elseif job == ARGV[1] then
      before = false
    elseif is_job(job) then
      local hash = 'gradcam:job:' .. job
      local f = ask('HMGET', hash, 'state', 'total', 'done', 'failed', 'chunk_size', 'not_before')
      local total, done, failed = whole(f[2], 0, MOST_COUNT), whole(f[3], 0, MOST_COUNT), whole(f[4], 0, MOST_COUNT)
      local size = whole(f[5], 1, MOST_CHUNK_SIZE)
      if f[1] == 'running' and total and done and failed and size then
        local left = math.max(total - done - failed, 0)
        local hands = math.min(left, in_flight(hash .. ':leases') * size)
        in_hand = in_hand + hands
        local waiting = ask('ZCARD', hash .. ':waiting')
        if before and type(waiting) == 'number' and (seconds(f[6]) or 0) <= t then
          -- Of the same priority each job before it gives one chunk, of a higher one all.
          local chunks = priority == queue and math.min(waiting, 1) or waiting
          ahead = ahead + math.min(left - hands, chunks * size)
        end
      end
    end
  end
  if priority == queue then before = false end
end
return {queue, #held, loading, stamp(delayed_s), stamp(silent_s), #alive, #readers, faulty, fault, refusing, refusal, ahead, in_hand, more}
