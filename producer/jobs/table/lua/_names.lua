-- What is found in Redis under the name of a job or of a chunk is used only where it can be one: it goes into keys of Redis
-- and of the store. `names.py` has the same rule for jobs; a chunk is a number as `add_chunk` writes it.
local function is_job(name)
  return #name <= 63 and string.find(name, '^[A-Za-z0-9][A-Za-z0-9._-]*$') ~= nil
end

local function is_chunk(name)
  if name == '0' then return true end
  return #name <= 10 and string.find(name, '^[1-9][0-9]*$') ~= nil and tonumber(name) < 2147483648
end

-- The chunk that has waited longest; what is none is passed over, and the reconciler drops it.
local function first_chunk(waiting)
  for _, chunk in ipairs(redis.call('ZRANGE', waiting, 0, 99)) do
    if is_chunk(chunk) then return chunk end
  end
end

-- The reconciler drops what is no chunk: from the first hundred of a sorted set, and with `all` from the whole of it.
local function drop_from_set(key, all)
  local dropped = 0
  for _, name in ipairs(redis.call('ZRANGE', key, 0, all and -1 or 99)) do
    if not is_chunk(name) then dropped = dropped + redis.call('ZREM', key, name) end
  end
  return dropped
end

local function drop_from_hash(key)
  local dropped = 0
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if not is_chunk(name) then dropped = dropped + redis.call('HDEL', key, name) end
  end
  return dropped
end
