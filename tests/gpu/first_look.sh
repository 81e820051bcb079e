#!/usr/bin/env bash
# On a GPU machine: builds the package, runs the backends' conformance suite, the transfer benchmark and the smoke runs.
# Usage: tests/gpu/first_look.sh [path of a tiers_tests binary built elsewhere, where GoogleTest is not installed here]
set -uo pipefail
out=${OUT:-.}
time python3 -m pip install -q --no-build-isolation --no-index --no-deps . > "$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }
if [ -n "${1:-}" ]; then
  timeout 200 "$1" --gtest_filter='*Cuda*:-*FakeCuda*' > "$out/tiers.log" 2>&1; echo "tiers: $?"; grep -E "FAILED|PASSED|SKIPPED|Failure" -A4 "$out/tiers.log" | tail -30
fi
cd tests/gpu && timeout 200 python3 smoke.py 2>&1 | tail -30
cd ../.. && for budget in 40GiB 8GiB; do
  timeout 150 python3 bench/infer.py --shape 13b --device-budget $budget --host-budget 32GiB --trace "$out/infer_$budget.json" 2>&1 | tail -4
done
