#!/usr/bin/env bash
# On a GPU machine, when bits differ: does the plain run repeat itself, and which setting makes the difference?
set -uo pipefail
export PYTHONWARNINGS=ignore
python3 -m pip install -q --no-build-isolation --no-index --no-deps . || exit 1
base="--shape 3b --layers 4 --batch 4 --tokens 1024 --warmup 1 --repeat 3 --host-budget 40GiB"
try() { echo "== $*"; timeout 120 python3 bench/train.py $base "$@" 2>&1 | grep -oE '"(difference|plain_against_plain)": "[^"]*"|"seconds": [0-9.]*|"faults": [0-9]*|^[A-Za-z.]*Error.*' | tr '\n' ' '; echo; }
try --twice-plain
try --twice-plain --deterministic
try --device-budget 60GiB --deterministic
try --device-budget 4GiB --deterministic
try --device-budget 4GiB --deterministic --no-recompute
TIERPAGE_CONF=prefetch:false try --device-budget 4GiB --deterministic
TIERPAGE_CONF=list_run_fraction:1.0 try --device-budget 16GiB --deterministic
TIERPAGE_CONF=policy:clock try --device-budget 4GiB --deterministic
TIERPAGE_CONF=paranoid:true try --device-budget 6GiB --deterministic --warmup 0 --repeat 2
