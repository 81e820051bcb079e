#!/usr/bin/env bash
# The launch guard on a GPU: programs that reach paged memory past all operators, plain against paged, and what it costs.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
failed=0
for program in raw_addresses raw_streams copies graph compiled_graphs side_stream_in_operator profiled; do
  timeout 300 python3 tests/gpu/guard.py "$program" || failed=1
done
timeout 300 python3 tests/gpu/guard.py cost || failed=1
exit $failed
