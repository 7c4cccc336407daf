-- A job whose ingest is closed and whose items all have their end goes on to its summary, once.
local function finish_if_complete(job)
  local f = redis.call('HMGET', job, 'state', 'ingest', 'total', 'done', 'failed')
  if (f[1] == 'running' or f[1] == 'paused') and f[2] == 'closed'
      and tonumber(f[4]) + tonumber(f[5]) == tonumber(f[3]) then
    redis.call('HSET', job, 'state', 'finalizing')
    return 'finalizing'
  end
  return f[1]
end
