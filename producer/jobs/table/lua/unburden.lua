-- A worker's trouble with a job is over: it did a chunk of it, or loaded its model.
-- KEYS  1 troubles
-- ARGV  fields
-- gives how many there were
return redis.call('HDEL', KEYS[1], unpack(ARGV))
