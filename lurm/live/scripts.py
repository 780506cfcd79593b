"""What Redis does with live events at once, in Lua; ``lurm.live.redis`` lists the keys.

Each first looks whether this is the store that is meant, and answers false if it is not.
"""

# Begins what writes: notes which life of Redis this is, and that no arrival is given that is known elsewhere.
# ``forgotten`` is the last one that Redis knows to have given, where that is less; -1 elsewhere.
_AWAKE = """
local P, held = KEYS[1], tonumber(ARGV[2])
if redis.call('HGET', P .. 'store', 'id') ~= ARGV[1] then
    return false
end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
if redis.call('HGET', P .. 'store', 'run') ~= run then
    redis.call('HSET', P .. 'store', 'run', run)
end
local forgotten = tonumber(redis.call('GET', P .. 'arrival') or '0')
if forgotten < held then
    redis.call('SET', P .. 'arrival', ARGV[2])
else
    forgotten = -1
end
"""
APPEND = f"""{_AWAKE}
local now, lifetime = ARGV[3], ARGV[4]
local answers = {{}}
for at = 5, #ARGV, 5 do
    local user, identity, stamp, newest = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local key = P .. 'u:' .. user
    local known = redis.call('HMGET', key, 'newest_at', 'erased_at')
    newest = math.max(newest, tonumber(known[1] or '0'))
    if stamp <= tonumber(known[2] or '0') then
        answers[#answers + 1] = -1
    elseif identity ~= '' and redis.call('EXISTS', P .. 'i:' .. identity) == 1 then
        answers[#answers + 1] = -2
    else
        local arrival = redis.call('INCR', P .. 'arrival')
        redis.call('XADD', P .. 'log', arrival .. '-0', 'u', user, 't', now, 'e', ARGV[at + 4])
        redis.call('RPUSH', P .. 'e:' .. user, arrival)
        redis.call('HSET', key, 'seq', arrival, 'newest_at', string.format('%.0f', math.max(newest, stamp)))
        if identity ~= '' then -- last: where one of these fails, it may come once more
            redis.call('SET', P .. 'i:' .. identity, '', 'EX', lifetime)
        end
        answers[#answers + 1] = stamp < newest and {{arrival}} or arrival
    end
end
return {{forgotten, answers}}
"""
TRY = f"""{_AWAKE}
redis.call('HSET', P .. 'store', 'tried', 1)
return {{forgotten, 1}}
"""
EVENTS = """
local P, after = KEYS[1], tonumber(ARGV[2])
if redis.call('HGET', P .. 'store', 'id') ~= ARGV[1] then
    return false
end
local answers, pruned = {}, tonumber(redis.call('HGET', P .. 'store', 'pruned') or '0') or 0
for at = 3, #ARGV do
    local entries = {}
    for _, arrival in ipairs(redis.call('LRANGE', P .. 'e:' .. ARGV[at], 0, -1)) do
        if tonumber(arrival) > after then
            entries[#entries + 1] = redis.call('XRANGE', P .. 'log', arrival .. '-0', arrival .. '-0')[1] or false
        end
    end
    local tail = redis.call('HMGET', P .. 'u:' .. ARGV[at], 'seq', 'erased_at', 'erased_seq')
    answers[#answers + 1] = {tail, entries, pruned}
end
return answers
"""
# By the ledger it may be done already, and a new life have begun.
ERASE = f"""{_AWAKE}
local user, moment = ARGV[3], tonumber(ARGV[4])
local key = P .. 'u:' .. user
local known = redis.call('HMGET', key, 'seq', 'erased_at', 'erased_seq')
if known[2] and tonumber(known[2]) >= moment then
    return {{forgotten, known}}
end
for _, arrival in ipairs(redis.call('LRANGE', P .. 'e:' .. user, 0, -1)) do
    redis.call('XDEL', P .. 'log', arrival .. '-0')
end
redis.call('DEL', P .. 'e:' .. user)
local arrival = redis.call('INCR', P .. 'arrival')
local text = string.format('%.0f', moment)
redis.call('HSET', key, 'seq', arrival, 'newest_at', 0, 'erased_at', text, 'erased_seq', arrival)
return {{forgotten, {{arrival, text, arrival}}}}
"""
PRUNE = """
local P, upto = KEYS[1], tonumber(ARGV[2])
if redis.call('HGET', P .. 'store', 'id') ~= ARGV[1] then
    return false
end
redis.call('HSET', P .. 'store', 'pruned', ARGV[2])
local entries = redis.call('XRANGE', P .. 'log', '-', ARGV[2], 'COUNT', 1000)
for _, entry in ipairs(entries) do
    local user = entry[2][2]
    local own = P .. 'e:' .. user
    local head = redis.call('LINDEX', own, 0)
    while head and tonumber(head) <= upto do
        redis.call('LPOP', own)
        head = redis.call('LINDEX', own, 0)
    end
    local known = redis.call('HMGET', P .. 'u:' .. user, 'seq', 'erased_at')
    if tonumber(known[1] or '0') <= upto and not known[2] then
        redis.call('DEL', P .. 'u:' .. user)
    end
    redis.call('XDEL', P .. 'log', entry[1])
end
return #entries
"""
