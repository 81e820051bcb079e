#!/usr/bin/env bash
# On a machine with two GPUs, within five minutes: what must be equal by bits, side by side on both, messages between them
# among it, then figures with and without codes on one of them.
set -uo pipefail
. tests/gpu/prepare.sh
export INSTALLED=1 PYTHONUNBUFFERED=1
seconds=${RANDOM_SECONDS:-45}
part() {  # $1: GPU or GPUs, $2: name, then the command
  local gpus=$1 name=$2
  shift 2
  CUDA_VISIBLE_DEVICES=$gpus timeout "${SECONDS_MAX:-85}" "$@" > "$out/$name.log" 2>&1
  echo "== $name: exit code $?, $SECONDS s: $(tail -1 "$out/$name.log" | cut -c1-300)"
}
tests() { TIERPAGE_TEST_DEVICE=cuda part "$1" "$2" python3 -m pytest -q --tb=native "tests/python/$2.py"; }
random() { part "$1" "random_$2" python3 tests/gpu/random_programs.py --first "$2" --count 20000 --seconds "$seconds"; }
tests 0,1 test_collectives &
tests 1 test_compress &
part 1 codes python3 tests/gpu/codes.py &
for first in 200000 220000; do random 0 $first & done
for first in 240000 260000; do TIERPAGE_CONF=compress:on,frame_bytes_max:2MiB random 1 $first & done
wait
grep -hE "DIFFERS|^FAILED|other bits|^E  |Error" "$out"/*.log | cut -c1-250 | head -40
export CUDA_VISIBLE_DEVICES=0 COLUMNS_MAX=${COLUMNS_MAX:-1500} SECONDS_MAX=60
BUDGETS=16GiB STEPS=infer bash tests/gpu/codes.sh
COMPRESS=auto STEPS=one bash tests/gpu/codes.sh
STEPS=train bash tests/gpu/codes.sh
