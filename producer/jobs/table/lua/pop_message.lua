-- Read the next message of the first queue that has one.
-- KEYS  the queues, in the order in which they are read
-- gives {number of the queue from 1, message} | {}
for n, queue in ipairs(KEYS) do
  local message = redis.pcall('RPOP', queue) -- another kind of key may be in its place
  if type(message) == 'string' then return {n, message} end
end
return {}
