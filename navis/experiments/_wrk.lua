-- wrk -s _wrk.lua URL -- FILE SIZE CONTENT_TYPE TOKEN
-- Posts the file's bodies of SIZE bytes each in turn; the last line of output is JSON.
local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function init(args)
  wrong, turn, requests = 0, 0, {}
  local headers = { ["content-type"] = args[3] }
  if args[4] then
    headers["authorization"] = "Bearer " .. args[4]
  end
  local file = assert(io.open(args[1], "rb"))
  for body in function() return file:read(tonumber(args[2])) end do
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
  file:close()
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function response(status)
  if status ~= 200 then
    wrong = wrong + 1
  end
end

function done(summary, latency)
  local wrong = 0
  for _, thread in ipairs(threads) do
    wrong = wrong + thread:get("wrong")
  end
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "per_s": %.1f, "wrong": %d, "connect": %d, "read": %d, "write": %d, '
      .. '"timeout": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n',
    summary.requests, summary.requests / summary.duration * 1e6, wrong, e.connect, e.read, e.write,
    e.timeout, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
