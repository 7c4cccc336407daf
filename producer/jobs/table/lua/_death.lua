-- What a dead holder had in flight comes under suspicion. `marks` holds the offsets it was about to decode or compute,
-- by commas; `suspects` holds offset=weight pairs. Only an item that was *alone* under the mark gets the death's weight:
-- of many, nobody knows which one it was, and a holder that had marked nothing accuses nobody.
-- What is longer than a chunk's offsets, or names others, is not ours and says nothing.
local MOST_MARKS, MOST_SUSPECTS = 5 * MOST_CHUNK_SIZE, 16 * MOST_CHUNK_SIZE

local function is_offset(text)
  return whole(text, 0, MOST_CHUNK_SIZE - 1)
end

local function parse_suspects(text)
  local found = {}
  if not text or #text > MOST_SUSPECTS then return found end
  for offset, weight in string.gmatch(text, '(%d+)=(%d+)') do
    if is_offset(offset) then found[offset] = whole(weight, 0, MOST_WORDS) end
  end
  return found
end

-- A holder marks 'load' while it loads the model: that is the job's, not one item's.
local function suspect(suspects, chunk, marked, weight)
  if marked == '' or #marked > MOST_MARKS then return end
  if marked == 'load' then
    count_up((string.gsub(suspects, 'suspects$', 'troubles')), 'load', weight)
    return
  end
  local known = parse_suspects(redis.call('HGET', suspects, chunk))
  local alone = not string.find(marked, ',')
  for offset in string.gmatch(marked, '%d+') do
    if is_offset(offset) then known[offset] = (known[offset] or 0) + (alone and weight or 0) end
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
