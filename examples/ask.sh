#!/bin/sh
# A bridge asked from the shell, with socat alone: one JSON value in, one line of JSON per answer out (docs/protocol.md).
#   sh examples/ask.sh status
#   sh examples/ask.sh matrix.send '{"room_id": "!room:your.org", "message": "hello"}'
#   sh examples/ask.sh containers.logs '{"name": "echo", "tail": 20}'       # a stream: its pieces, then the answer
set -eu

socket=${ARMORCLAW_SOCKET:-/run/armorclaw/bridge.sock}
method=$1
params=${2:-null}

# No newline is needed, and values may be written over several lines. socat half-closes after sending and then waits
# up to -t seconds for the bridge, which answers within 4, or streams for as long as somebody reads.
printf '{"jsonrpc": "2.0", "id": 1,\n "method": "%s", "params": %s}' "$method" "$params" |
  socat -t "${TIMEOUT:-5}" - "UNIX-CONNECT:$socket"
