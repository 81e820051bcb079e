#!/usr/bin/env bash
# On a GPU machine: what must hold of the newest tree, the package built once. Steps can be chosen with STEPS.
set -uo pipefail
out=${OUT:-.}
steps=${STEPS:-"bits deferral token fits train python"}
disk=${DIRECTORY:-/var/tmp}
export PYTHONWARNINGS=ignore
[[ -n ${INSTALLED:-} ]] || python3 -m pip install -q --no-build-isolation --no-index --no-deps . > "$out/build.log" 2>&1 || { tail -40 "$out/build.log"; exit 1; }
export INSTALLED=1
speed() { STEPS=$1 bash tests/gpu/speed.sh 2>&1 | grep "^{\|passed\|failed\|Error\|difference\|FAILED" | cut -c1-1400; }
# One token is bound by the host: the median of many, and without what an operator could be charged for.
token() { timeout 120 python3 bench/infer.py --shape 13b --tokens 1 --repeat 60 --device-budget 40GiB --host-budget 32GiB "$@" 2>&1 | tail -1 |
  python3 -c 'import json, sys; row = json.loads(sys.stdin.read()); times = sorted(row["times"][3:]); print(*(f"{k}={row[k]}" for k in ("seconds", "plain_seconds", "ratio_to_bound", "faults")), "quartiles", times[15], times[45])'; }
for step in $steps; do
  echo "== $step $(date +%T)"
  case $step in
    sweep) STEPS=sweep SECONDS_MAX=150 bash tests/gpu/sweep.sh 2>&1 | grep -oE '"device_budget_bytes": [0-9]*|"seconds": [0-9.]*|"ratio_to_bound": [0-9.]*|"bits_equal": [a-z]*' | paste - - - - ;;
    saved-peers) STEPS=saved-peers SECONDS_MAX=${PEERS_SECONDS:-200} bash tests/gpu/sweep.sh 2>&1 | cut -c1-700 ;;
    token) token; token; TIERPAGE_CONF=defer_updates:False token --no-plain; token --no-plain ;;
    disk) timeout 100 dd if=/dev/zero of="$disk/tierpage-disk" bs=16M count=640 oflag=direct 2>&1 | tail -1
      timeout 100 dd if="$disk/tierpage-disk" of=/dev/null bs=16M iflag=direct 2>&1 | tail -1; rm -f "$disk/tierpage-disk" ;;
    checkpoint) timeout 250 python3 bench/checkpoint.py --folder "$disk/tierpage-checkpoint" --device cuda --shape 13b --layers 20 --dtype bfloat16 2>&1 | tail -3 | cut -c1-1800 ;;
    python) TIERPAGE_TEST_DEVICE=cuda timeout 150 python3 -m pytest -q tests/python/test_pause_pin.py tests/python/test_stats.py tests/python/test_raw_access.py tests/python/test_threads.py 2>&1 | tail -12 ;;
    gds) OUT=$out timeout 250 bash tests/gpu/gds.sh 2>&1 | cut -c1-500 | tail -30 ;;
    *) speed "$step" ;;
  esac
done
