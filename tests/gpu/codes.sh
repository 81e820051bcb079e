#!/usr/bin/env bash
# On a GPU machine: coded pages against plain ones, bits first, then figures. Writes $OUT/codes.jsonl, a row a case, each
# with compress off and auto one behind the other. STEPS chooses.
set -uo pipefail
. tests/gpu/prepare.sh
steps=${STEPS:-"bits random infer one generate train hooks"}
row() {  # $1: off, auto or on, then the command
  local compress=$1
  shift
  TIERPAGE_CONF=compress:$compress timeout "${SECONDS_MAX:-120}" python3 "$@" 2>> "$out/codes.log" | tail -1 |
    sed "s/^{/{\"compress\": \"$compress\", /" | tee -a "$out/codes.jsonl" | cut -c1-"${COLUMNS_MAX:-900}"
}
both() { for compress in ${COMPRESS:-off auto}; do row $compress "$@"; done; }
train() { both bench/train.py --shape 3b --deterministic --device-budget 16GiB --host-budget 60GiB --repeat 3 "$@"; }
infer() { both bench/infer.py --shape 13b --tokens "$1" --device-budget "$2" --host-budget 32GiB --warmup "${3:-3}"; }
for step in $steps; do
  echo "== $step $(date +%T)"
  case $step in
    bits) timeout 150 python3 tests/gpu/codes.py 2>&1 | tee "$out/bits.log" | tail -40 ;;
    random) # programs of raw launches, graphs and threads, with codes wherever they are possible
      for first in 0 20000 40000; do
        TIERPAGE_CONF=compress:on,frame_bytes_max:2MiB timeout 200 python3 tests/gpu/random_programs.py --first $first --count 20000 \
          --seconds "${RANDOM_SECONDS:-45}" > "$out/random_$first.log" 2>&1 &
      done
      wait
      tail -qn 1 "$out"/random_*.log ;;
    infer) for budget in ${BUDGETS:-16GiB 4GiB}; do infer 2048 "$budget"; done ;;
    one) infer 1 16GiB 4 ;;
    generate) both bench/generate.py --shape 13b --host-budget 40GiB --device-budget 16GiB ;;
    train) train ;;
    hooks) train --hooks ;;
    nf4) both bench/generate.py --shape 32b --quantize nf4 --device-budget 8GiB --host-budget 40GiB ;;
    fits) both bench/infer.py --shape 13b --tokens 2048 --device-budget 40GiB --host-budget 32GiB ;;
  esac
done
