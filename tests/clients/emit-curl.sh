#!/bin/sh
# emit SESSION EVENT SOURCE HASH MILLISECONDS: reports one use of the cache; never fails, and waits a second at most.
# MILLISECONDS is the time that a hit saved, 0 on a miss.
emit() {
  curl --silent --output /dev/null --max-time 1 --header 'Content-Type: application/json' \
    --unix-socket "${ARTIFACTS_AGENT_HTTP_SOCKET-/run/artifacts-agent/http.sock}" http://localhost/v8/artifacts/events \
    --data "[{\"sessionId\":\"$1\",\"source\":\"$3\",\"event\":\"$2\",\"hash\":\"$4\",\"duration\":$5}]" || :
}

case $0 in *emit-curl.sh) emit "$@" ;; esac # not where another script reads this one with "."
