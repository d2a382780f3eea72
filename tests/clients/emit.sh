#!/bin/sh
# emit SESSION EVENT SOURCE HASH MILLISECONDS: reports one use of the cache; never fails, and waits a second at most.
# MILLISECONDS is the time that a hit saved, 0 on a miss.
emit() {
  printf '{"sessionId":"%s","source":"%s","event":"%s","hash":"%s","duration":%s}\n' "$1" "$3" "$2" "$4" "$5" |
    timeout 1 socat -u - "UNIX-CONNECT:${ARTIFACTS_AGENT_SOCKET-/run/artifacts-agent/events.sock}" 2>/dev/null || :
}

case $0 in *emit.sh) emit "$@" ;; esac # not where another script reads this one with "."
