-- A failed item is failed no more: its failure goes, and its reason counts one less.
local function forget_failure(failures, reasons, index)
  local text = redis.call('HGET', failures, index)
  if not text then return end
  local reason = decoded(text).reason
  if type(reason) == 'string' and count_up(reasons, reason, -1) <= 0 then redis.call('HDEL', reasons, reason) end
  redis.call('HDEL', failures, index)
end
