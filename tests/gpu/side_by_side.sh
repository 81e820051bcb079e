#!/usr/bin/env bash
# On a machine with two GPUs: figures on the first, correctness on the second, at the same time. FIGURES and CHECKS choose
# the steps; PROGRAMS names a folder with more programs, each of which prints RESULT; WHEELS as in prepare.sh.
set -uo pipefail
. tests/gpu/prepare.sh
export INSTALLED=1 OUT=$out
minutes=${MINUTES:-9}
figures() { CUDA_VISIBLE_DEVICES=0 STEPS=${FIGURES:-"one generate nf4 static lora"} timeout $((minutes * 60)) bash tests/gpu/decoding.sh; }
program() { echo "-- $1 $(date +%T)"; timeout "${PROGRAM_SECONDS:-120}" python3 "$1" --device cuda > "$out/program.log" 2>&1; tail -3 "$out/program.log" | cut -c1-600; cat "$out/program.log" >> "$out/programs.log"; }
check() {
  case $1 in
    guard) CUDA_VISIBLE_DEVICES=1 bash tests/gpu/guard.sh ;;
    opinfo) CUDA_VISIBLE_DEVICES=1 TIERPAGE_TEST_DEVICE=cuda TIERPAGE_OPINFO_SHARDS=${SHARDS:-6} timeout "${OPINFO_SECONDS:-400}" python3 -m pytest -q -s tests/python/test_opinfo.py > "$out/opinfo.log" 2>&1; grep -E "^shard|^E  |passed|failed" "$out/opinfo.log" | cut -c1-400 | head -60 ;;
    programs) for one in "${PROGRAMS:-.}"/*.py; do CUDA_VISIBLE_DEVICES=1 program "$one"; done ;;
    pairs) for one in "${PROGRAMS:-.}"/pairs/[!_]*.py; do program "$one"; done ;;
  esac
}
checks() { for step in ${CHECKS:-guard opinfo}; do echo "== $step $(date +%T)"; check "$step"; done; }
figures > "$out/figures.txt" 2>&1 &
checks > "$out/checks.txt" 2>&1
wait
cat "$out/checks.txt" "$out/figures.txt"
