#!/usr/bin/env bash
# On a GPU machine: what docs/benchmarks.md and the release need at full size.
# Usage: tests/gpu/full_size.sh [tiers_tests binary]   Steps can be chosen with STEPS="memcheck bits demo python infer".
set -uo pipefail
out=${OUT:-.}
steps=${STEPS:-memcheck bits infer demo}
export PYTHONWARNINGS=ignore
if [[ -z ${INSTALLED:-} ]]; then  # a caller that runs several of these scripts builds once
  python3 -m pip install -q --no-build-isolation --no-index --no-deps . > "$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }
fi
for step in $steps; do
  echo "== $step"
  case $step in
    memcheck)
      timeout 240 compute-sanitizer --tool memcheck --error-exitcode 9 "$1" --gtest_filter='*/Cuda:-*MoreFramesThanMemory*' > "$out/memcheck.log" 2>&1
      echo "exit $?"; grep -E "ERROR SUMMARY|PASSED|FAILED" "$out/memcheck.log" ;;
    bits)
      base="--shape 3b --layers 4 --batch 4 --tokens 1024 --warmup 1 --repeat 8 --host-budget 40GiB --deterministic"
      for extra in "--twice-plain" "--device-budget 60GiB" "--device-budget 4GiB" "--device-budget 4GiB --no-recompute" "--device-budget 4GiB --hooks"; do
        echo "$extra: $(timeout 100 python3 bench/train.py $base $extra 2>&1 | grep -oE '"(difference|plain_against_plain)": "[^"]*"|"seconds": [0-9.]*|"faults": [0-9]*|^[A-Za-z.]*Error.*' | tr '\n' ' ')"
      done ;;
    infer)
      for budget in ${INFER_BUDGETS:-8GiB}; do
        timeout 150 python3 bench/infer.py --shape 13b --device-budget $budget --host-budget 32GiB --trace "$out/infer_$budget.json" 2>&1 | tail -1
      done ;;
    train)
      timeout 250 python3 bench/train.py --shape 3b --batch 4 --device-budget 16GiB --host-budget 60GiB --warmup 2 --deterministic --trace "$out/train.json" 2>&1 | tail -1 ;;
    demo)
      timeout 550 python3 -m tierpage demo --size ${DEMO_SIZE:-40GB} --device-budget 8GiB --steps ${DEMO_STEPS:-3} 2>&1 | tail -30 ;;
    python)
      TIERPAGE_TEST_DEVICE=cuda timeout 550 python3 -m pytest -q -x tests/python ${PYTEST_ARGS:-} 2>&1 | tail -30 ;;
  esac
done
