#!/usr/bin/env bash
# On a GPU machine: tierpage over many device budgets, and peers under some of them. Writes JSON lines for bench/report.py:
# $OUT/sweep.jsonl (one row a budget) and $OUT/peers.jsonl. Steps can be chosen with STEPS; wheels of the peers' libraries
# that the machine lacks lie in the folder that WHEELS names.
set -uo pipefail
. tests/gpu/prepare.sh
steps=${STEPS:-"sweep"}
# The rows go into the file as they come, so that a run that is cut off leaves what it had.
rows() { tee -a "$1" | cut -c1-400; }
plain=$(mktemp -d)
peers() { timeout "${SECONDS_MAX:-550}" python3 bench/peers/run.py "$@" 2>> "$out/peers.log" | rows "$out/peers.jsonl"; }
for step in $steps; do
  echo "== $step $(date +%T)"
  case $step in
    sweep)  # largest first: it ends at the first budget that is refused
      timeout "${SECONDS_MAX:-550}" python3 bench/infer.py --shape "${SHAPE:-13b}" --tokens "${TOKENS:-2048}" \
        --host-budget "${HOST_BUDGET:-32GiB}" --repeat "${REPEAT:-5}" \
        --sweep "${BUDGETS:-40GiB,24GiB,20GiB,16GiB,12GiB,8GiB,6GiB,4GiB,3GiB}" 2>> "$out/sweep.log" | rows "$out/sweep.jsonl" ;;
    infer-peers)
      peers infer --shape "${SHAPE:-13b}" --tokens "${TOKENS:-2048}" --device-budget "${PEER_BUDGET:-16GiB}" \
        --plain "$plain/infer.json" ${ONLY:+--only $ONLY} ;;
    train-peers)
      peers train --shape 3b --batch 4 --device-budget 16GiB --repeat 3 --plain "$plain/train.json" ${ONLY:+--only $ONLY} ;;
    large-peers)
      peers train --shape 3b --batch 32 --device-budget 40GiB --repeat 3 --warmup 2 --plain "$plain/large.json" --only ${ONLY:-fsdp2 fsdp2_bf16} ;;
    saved-peers)
      peers train --shape 3b --batch 4 --device-budget "${PEER_BUDGET:-16GiB}" --no-recompute --repeat 3 --plain "$plain/saved.json" \
        --only ${ONLY:-save_on_cpu fsdp2_save_on_cpu fsdp2} ;;
  esac
done
wc -l "$out"/*.jsonl
