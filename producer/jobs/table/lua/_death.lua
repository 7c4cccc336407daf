-- What a dead holder had in flight comes under suspicion. `marks` holds the offsets it was about to decode or compute,
-- by commas; `suspects` holds offset=weight pairs. Only an item that was *alone* under the mark gets the death's weight:
-- of many, nobody knows which one it was, and a holder that had marked nothing accuses nobody.
local function parse_suspects(text)
  local found = {}
  for offset, weight in string.gmatch(text or '', '(%d+)=(%d+)') do found[offset] = tonumber(weight) end
  return found
end

-- A holder marks 'load' while it loads the model: that is the job's, not one item's.
local function suspect(suspects, chunk, marked, weight)
  if marked == '' then return end
  if marked == 'load' then
    redis.call('HINCRBY', (string.gsub(suspects, 'suspects$', 'troubles')), 'load', weight)
    return
  end
  local known = parse_suspects(redis.call('HGET', suspects, chunk))
  local alone = not string.find(marked, ',')
  for offset in string.gmatch(marked, '%d+') do
    known[offset] = (known[offset] or 0) + (alone and weight or 0)
  end
  local pairs_ = {}
  for offset, found in pairs(known) do pairs_[#pairs_ + 1] = offset .. '=' .. found end
  table.sort(pairs_)
  redis.call('HSET', suspects, chunk, table.concat(pairs_, ','))
end

local function note_death(marks, suspects, chunk, weight)
  strike((string.gsub(suspects, ':suspects$', '')), 1)
  local marked = redis.call('HGET', marks, chunk)
  if not marked then return end
  redis.call('HDEL', marks, chunk)
  suspect(suspects, chunk, marked, weight)
end
