-- Forget a job that has ended, or that cannot be read, with all its keys. One that is held for deletion is its holder's to forget.
-- KEYS  1 job  2 gradcam:jobs  3 gradcam:active  4.. every other key of the job
-- ARGV  1 id  2 who
-- gives 'deleted' | 'gone' | state of a job that has not ended
if not fault_of(KEYS[1]) then
  local state = settled_state(KEYS[1], KEYS[3], ARGV[1])
  if not state then return 'gone' end
  if state == 'deleting' then
    if not may_take_over(KEYS[1], ARGV[2]) then return state end
  elseif not ENDS[state] then
    return state
  end
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
for i, key in ipairs(KEYS) do
  if i ~= 2 and i ~= 3 then redis.call('UNLINK', key) end
end
return 'deleted'
