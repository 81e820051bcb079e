#!/usr/bin/env bash
# On a GPU machine: what must be equal by bits, side by side in one call of ten minutes. Logs lie under $OUT, a summary on
# stdout. PARTS chooses; WHEELS names a folder with wheels of the libraries of tests/compat that the machine lacks.
set -uo pipefail
. tests/gpu/prepare.sh
export PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1 TIERPAGE_TEST_DEVICE=cuda
mkdir -p "$out/logs"
part() {  # $1: name, then the command
  local name=$1 before=$SECONDS
  shift
  timeout "${SECONDS_MAX:-420}" "$@" >"$out/logs/$name" 2>&1
  echo "== $name: exit code $?, $((SECONDS - before)) s: $(tail -1 "$out/logs/$name" | cut -c1-300)"
}
random() { part "random_$1" python3 tests/gpu/random_programs.py --first "$@" --count 20000 --seconds "${RANDOM_SECONDS:-240}"; }
for name in ${PARTS:-shelf random tests overflow guard}; do
  case $name in
    shelf) part shelf python3 tests/compat & ;;
    random)
      for first in 0 20000 40000 60000 80000; do random $first & done
      random 100000 --paranoid & ;;
    tests) part tests python3 -m pytest -q tests/python/test_overflow.py tests/python/test_guesses.py tests/python/test_collectives.py & ;;
    overflow) part overflow python3 tests/gpu/overflow.py & ;;
    guard) part guard bash tests/gpu/guard.sh & ;;
  esac
done
wait
cat "$out"/logs/* >"$out/proof.log"
grep -hE "DIFFERS|FAILED|other bits|nothing was paged|ERROR SUMMARY|^E  " "$out/proof.log" | cut -c1-250 | tail -60
