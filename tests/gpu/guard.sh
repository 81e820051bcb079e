#!/usr/bin/env bash
# The launch guard on a GPU: programs that reach paged memory past all operators, plain against paged.
#   tests/gpu/guard.sh [FOLDER]    FOLDER: more scripts gpu_rev_*.py, each prints RESULT
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for program in raw_addresses raw_streams copies graph compiled_graphs side_stream_in_operator; do
  timeout 300 python3 tests/gpu/guard.py "$program"
done
folder=${1:-}
[[ -z $folder ]] || (cd "$folder" && for script in gpu_rev_*.py; do
  [[ $script == gpu_rev_common.py || $script == gpu_rev_kernels.py ]] || timeout 300 python3 "$script" 2>&1 | grep -E "RESULT|skipped"
done)
