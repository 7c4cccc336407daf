-- What has happened since this Redis was empty: for metrics, nothing is decided by it. What is in its key's place must not
-- keep a job from going on.
local function count(what, by)
  redis.pcall('HINCRBY', 'gradcam:counts', what, by)
end
