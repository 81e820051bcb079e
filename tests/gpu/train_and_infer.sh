#!/usr/bin/env bash
# On a GPU machine: builds the package and runs the inference and training benchmarks of docs/benchmarks.md.
set -uo pipefail
out=${OUT:-.}
python3 -m pip install -q --no-build-isolation --no-index --no-deps . > "$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }
for budget in ${INFER_BUDGETS:-16GiB 8GiB 4GiB}; do
  timeout 150 python3 bench/infer.py --shape 13b --device-budget $budget --host-budget 32GiB --trace "$out/infer_$budget.json" 2>&1 | tail -4
done
[ -n "${SKIP_TRAIN:-}" ] || timeout 300 python3 bench/train.py --shape 3b --batch 4 --device-budget 16GiB --host-budget 60GiB 2>&1 | tail -4
[ -n "${SKIP_TRAIN:-}" ] || timeout 300 python3 bench/train.py --shape 3b --batch 4 --device-budget 16GiB --host-budget 60GiB --hooks 2>&1 | tail -4
