#!/usr/bin/env bash
# On a GPU machine: the figures of docs/benchmarks.md, one JSON line each. Steps can be chosen with STEPS.
set -uo pipefail
. tests/gpu/prepare.sh
steps=${STEPS:-"infer train hooks lists bits"}
infer() { timeout 120 python3 bench/infer.py --shape 13b --host-budget 32GiB "$@" 2>&1 | tail -1 | cut -c1-1500; }
train() { timeout 250 python3 bench/train.py --shape 3b --host-budget 80GiB --warmup 7 "$@" 2>&1 | tail -1 | cut -c1-1800; }
for step in $steps; do
  echo "== $step $(date +%T)"
  case $step in
    infer) for budget in ${BUDGETS:-16GiB 4GiB}; do infer --device-budget "$budget" --trace "$out/infer_$budget.json"; done ;;
    fits) infer --device-budget 40GiB; infer --device-budget 40GiB --tokens 1 ;;
    train) train --device-budget 16GiB --trace "$out/train.json" ;;
    hooks) train --device-budget 16GiB --hooks --no-plain --trace "$out/hooks.json" ;;
    large) train --device-budget 40GiB --batch 32 --warmup 6 --trace "$out/large.json" ;;
    tight) train --device-budget 30GiB --batch 32 --warmup 6 --no-plain ;;
    saved) train --device-budget 16GiB --no-recompute --no-plain --warmup 6 ;;
    pages) for size in ${PAGE_SIZES:-16MiB 64MiB}; do
        for mode in "" --hooks; do TIERPAGE_CONF="frame_bytes_max:$size" train --device-budget 16GiB --no-plain $mode; done
      done ;;
    lists) TIERPAGE_TEST_DEVICE=cuda timeout 200 python3 -m pytest -q tests/python/test_stats.py tests/python/test_api_bad_input.py 2>&1 | tail -15 ;;
    deferral) TIERPAGE_TEST_DEVICE=cuda timeout 300 python3 -m pytest -q -x tests/python/test_deferral.py 2>&1 | tail -15 ;;
    bits) STEPS=bits bash tests/gpu/full_size.sh ;;
  esac
done
gzip -f "$out"/*.json 2>/dev/null; ls -la "$out" | tail -12
