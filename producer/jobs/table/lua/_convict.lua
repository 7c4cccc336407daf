-- When workers' troubles with a job are the job's own fault: then it goes to its end, with one sentence.
--   deaths while its model was loaded weigh 4 together (two that a parent saw, or four that nobody saw);
--   or every worker that is alive and reads its queue says that it cannot do it, or has met an error in it that nobody
--   foresaw, and there were three such errors in all;
--   or three workers, not all on one machine, have met such an error.
-- `troubles` holds worker:<name> -> JSON, and load -> weight. A worker that did a chunk of the job takes its word back.
local CONVICTING, TRIES, SILENT_S, LONGEST_REFUSAL_S = 4, 3, 60, 600

-- How often a worker has said the same of a job, as its word has it.
local function tries_of(word)
  local tries = word.tries
  return type(tries) == 'number' and tries >= 1 and tries <= MOST_COUNT and math.floor(tries) or 1
end

-- Whether there is a worker, other than `me`, that is alive, reads a priority and has not said a word.
local function undecided(queue, told, me)
  local alive = ask('ZRANGEBYSCORE', 'gradcam:workers', stamp(now() - SILENT_S), '+inf', 'LIMIT', 0, MOST_WORDS)
  if alive.err then return true end -- nobody knows
  for _, worker in ipairs(alive) do
    local reads = ask('HGET', 'gradcam:queues', worker)
    local its = type(reads) ~= 'string' or string.find(',' .. reads .. ',', ',' .. queue .. ',', 1, true)
    if its and worker ~= me and not told[worker] then return true end
  end
  return false
end

local function guilty(job)
  local f = redis.call('HMGET', job, 'state', 'queue')
  if f[1] ~= 'running' and f[1] ~= 'paused' then return nil end
  local found = redis.call('HGETALL', job .. ':troubles')
  local told, count, tries, workers, hosts, sentence, refused = {}, 0, 0, 0, {}, nil, nil
  for i = 1, #found, 2 do
    local worker = string.match(found[i], '^worker:(.*)$')
    if worker then
      local word = decoded(found[i + 1])
      if word.kind == 'refused' or word.kind == 'error' then
        told[worker] = word
        count = count + 1
      end
      if word.kind == 'refused' then refused = tostring(word.sentence) end
      if word.kind == 'error' then
        tries, workers, sentence = tries + tries_of(word), workers + 1, tostring(word.sentence)
        hosts[tostring(word.host)] = true
      end
    elseif found[i] == 'load' and (whole(found[i + 1], 0, MOST_COUNT) or 0) >= CONVICTING then
      return 'the weights crash the process that loads them, each time: they end it, hang, or need more memory than a '
        .. 'worker has; correct --weight-path, or give the workers more memory'
    end
  end
  if count == 0 then return nil end
  sentence = sentence and sentence .. ' (' .. tries .. ' tries; the log of the workers has more)'
  if workers >= TRIES and next(hosts, (next(hosts))) then return sentence end
  if tries > 0 and tries < TRIES then return nil end
  if undecided(f[2], told, nil) then return nil end
  return refused or sentence
end

local function convict(job)
  local sentence = guilty(job)
  if sentence then
    redis.call('HSET', job, 'outcome', 'failed', 'error', sentence, 'state', 'finalizing')
    redis.call('HDEL', job, 'reopening')
  end
  return redis.call('HGET', job, 'state')
end
