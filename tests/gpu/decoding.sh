#!/usr/bin/env bash
# On a GPU machine: one token at a time, 4-bit weights and adapters, also on fewer cores. Writes $OUT/decoding.jsonl, a row
# a case, each with its plain side. STEPS chooses; the wheel of bitsandbytes lies in the folder that WHEELS names.
set -uo pipefail
. tests/gpu/prepare.sh
steps=${STEPS:-"one generate static batch prompt nf4 lora cores"}
row() { timeout "${SECONDS_MAX:-200}" python3 "$@" 2>> "$out/decoding.log" | tail -1 | tee -a "$out/decoding.jsonl" | cut -c1-700; }
one() { row bench/infer.py --shape 13b --tokens 1 --device-budget "$1" --host-budget 32GiB --warmup 4 "${@:2}"; }
generate() { row bench/generate.py --shape 13b --host-budget 40GiB --device-budget "$@"; }
for step in $steps; do
  echo "== $step $(date +%T)"
  case $step in
    one) for budget in ${BUDGETS:-16GiB 8GiB}; do one "$budget"; done ;;
    gaps) # where the link idles, and what the pager's thread does meanwhile
      timeout 100 python3 bench/infer.py --shape 13b --tokens 1 --device-budget 16GiB --host-budget 32GiB --no-plain \
        --warmup 4 --repeat 12 --trace "$out/trace.json.gz" 2>> "$out/decoding.log" | tail -1 | cut -c1-1200
      python3 bench/gaps.py "$out/trace.json.gz" ;;
    generate) for budget in ${BUDGETS:-16GiB 8GiB}; do generate "$budget"; done ;;
    static) generate 16GiB --cache static ;;
    batch) generate 16GiB --batch 8 ;;
    prompt) generate 16GiB --prompt 2000 ;;
    nf4) row bench/generate.py --shape 32b --quantize nf4 --device-budget 8GiB --host-budget 40GiB ;;
    nf4-70b) for budget in 24GiB 16GiB; do row bench/generate.py --shape 70b --quantize nf4 --device-budget $budget --host-budget 60GiB; done ;;
    lora) row bench/train.py --shape 13b --batch 4 --tokens 1024 --lora 16 --deterministic --device-budget 16GiB --host-budget 60GiB ;;
    cores)
      for cores in 4 2; do
        one 16GiB --cores $cores
        generate 16GiB --cores $cores
      done ;;
  esac
done
wc -l "$out/decoding.jsonl"
