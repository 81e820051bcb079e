#!/usr/bin/env bash
# On a GPU machine: two versions of this repository, row by row one behind the other. BEFORE is a folder with the earlier
# one (git archive REVISION | tar x -C FOLDER). Writes $OUT/before_after.jsonl; STEPS, BUDGETS and COMPRESS choose.
set -uo pipefail
out=${OUT:-.}
export PYTHONWARNINGS=ignore
declare -A site
build() {  # $1: name, $2: folder
  site[$1]=$(mktemp -d)
  (cd "$2" && python3 -m pip install -q --no-build-isolation --no-index --no-deps --target "${site[$1]}" .) > "$out/build_$1.log" 2>&1 ||
    { tail -40 "$out/build_$1.log"; exit 1; }
}
build before "${BEFORE:?the folder of the earlier version}"
build after .
row() {  # $1: before or after, $2: off, auto or on, then the command; the scripts are those of this tree
  local version=$1 compress=$2
  shift 2
  PYTHONPATH=${site[$version]} TIERPAGE_CONF=compress:$compress timeout "${SECONDS_MAX:-120}" python3 "$@" 2>> "$out/before_after.log" |
    tail -1 | sed "s/^{/{\"version\": \"$version\", \"compress\": \"$compress\", /" | tee -a "$out/before_after.jsonl" | cut -c1-"${COLUMNS_MAX:-500}"
}
pair() { for compress in ${COMPRESS:-off auto}; do for version in before after; do row $version "$compress" "$@"; done; done; }
infer() { pair bench/infer.py --shape 13b --tokens "$1" --device-budget "$2" --host-budget 32GiB --warmup "${3:-3}"; }
train() { pair bench/train.py --shape 3b --deterministic --device-budget "$1" --host-budget 60GiB --repeat 3 "${@:2}"; }
for step in ${STEPS:-infer one hooks train}; do
  echo "== $step $(date +%T)"
  case $step in
    infer) for budget in ${BUDGETS:-20GiB 16GiB 8GiB 4GiB}; do infer 2048 "$budget"; done ;;
    one) infer 1 16GiB 4 ;;
    hooks) for budget in ${TRAIN_BUDGETS:-24GiB 16GiB}; do train "$budget" --hooks; done ;;
    train) train 16GiB ;;
  esac
done
