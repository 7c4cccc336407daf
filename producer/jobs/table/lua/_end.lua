-- A job whose ingest is closed and whose items all have their end goes on to its summary, once; not while failed items
-- are being reopened, when the first of them may have their end before the last are pending again.
local function finish_if_complete(job)
  local f = redis.call('HMGET', job, 'state', 'ingest', 'total', 'done', 'failed', 'reopening')
  if (f[1] == 'running' or f[1] == 'paused') and f[2] == 'closed' and not f[6]
      and tonumber(f[4]) + tonumber(f[5]) == tonumber(f[3]) then
    redis.call('HSET', job, 'state', 'finalizing')
    return 'finalizing'
  end
  return f[1]
end
