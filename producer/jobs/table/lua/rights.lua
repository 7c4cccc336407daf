-- Which commands this user may not run: each is tried on a key of this call's own, which is gone afterwards.
-- KEYS  1 a key that nobody else uses
-- ARGV  1.. commands
-- gives those that are refused; '~' among them where the key is
local function answer_of(command)
  local words = {}
  for n = 0, 5 do
    local answer = redis.pcall(command, unpack(words))
    local said = type(answer) == 'table' and answer.err or ''
    -- A number of arguments that is wrong is told before rights are looked at.
    if not string.find(said, 'rong number of arg', 1, true) then return said end
    words[n + 1] = n == 0 and KEYS[1] or 'x'
  end
  return ''
end

local refused = {}
for _, command in ipairs(ARGV) do
  local said = answer_of(command)
  if string.find(said, 'permissions to run', 1, true) or string.find(said, "can't run this command", 1, true) then
    refused[#refused + 1] = command
  elseif string.find(said, 'ermissions to access', 1, true) or string.find(said, "can't access", 1, true) then
    refused[#refused + 1] = '~'
  end
end
redis.pcall('UNLINK', KEYS[1])
redis.pcall('DEL', KEYS[1])
redis.pcall('EXPIRE', KEYS[1], 1)
return refused
