#!/usr/bin/env bash
# On a GPU machine: what must hold of the newest tree, within ten minutes. Steps can be chosen with STEPS.
set -uo pipefail
out=${OUT:-.}
steps=${STEPS:-"deferral fits train sweep checkpoint bits python gds"}
disk=${DIRECTORY:-/var/tmp}
export PYTHONWARNINGS=ignore
for step in $steps; do
  echo "== $step $(date +%T)"
  case $step in
    deferral | fits | train | bits | hooks | saved | tight | large) STEPS=$step bash tests/gpu/speed.sh 2>&1 | grep -v "^==\|^total\|^d\|^-" | cut -c1-1300 ;;
    sweep) STEPS=sweep SECONDS_MAX=150 bash tests/gpu/sweep.sh 2>&1 | grep -oE '"device_budget_bytes": [0-9]*|"seconds": [0-9.]*|"ratio_to_bound": [0-9.]*|"bits_equal": [a-z]*' | paste - - - - ;;
    checkpoint) timeout 200 python3 bench/checkpoint.py --folder "$disk/tierpage-checkpoint" --device cuda --shape 13b --layers 20 --dtype bfloat16 2>&1 | tail -3 | cut -c1-1800 ;;
    python) TIERPAGE_TEST_DEVICE=cuda timeout 150 python3 -m pytest -q tests/python/test_pause_pin.py tests/python/test_stats.py tests/python/test_raw_access.py tests/python/test_threads.py 2>&1 | tail -12 ;;
    gds) OUT=$out timeout 150 bash tests/gpu/gds.sh 2>&1 | cut -c1-500 | tail -20 ;;
  esac
done
