"""`tierpage estimate` against what an H200 was measured at (docs/benchmarks.md, docs/estimate.md): within 10 %.

All but the coded rows and that of one token are of 2026-11-21. Where decision 057 has taken an estimate farther than 10 %
from what was measured before it, ``AGED`` says how far.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierpage import cli

TOLERANCE = 0.10
AGED = {("8GiB", 0.370): 0.102}  # 0.338 s was estimated then
PLAIN, CODED = ("--compress", "off"), ("--compress", "auto")
INFER = ("llama_13b", "--dtype", "bfloat16", "--host-budget", "32GiB", "--tokens", "2048")
TOKEN = (*INFER, "--tokens", "1")
TRAIN = ("llama_3b", "--mode", "train", "--batch", "4", "--host-budget", "80GiB", "--tokens", "2048", *PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "measured"),
    [
        ((*INFER, *PLAIN), {"40GiB": 0.0916, "20GiB": 0.110, "16GiB": 0.183, "8GiB": 0.370, "4GiB": 0.417}),
        ((*INFER, *CODED), {"16GiB": 0.142, "4GiB": 0.311}),
        ((*TOKEN, *PLAIN), {"16GiB": 0.1747}),
        ((*TOKEN, *CODED), {"16GiB": 0.1287}),
        ((*TRAIN, "--recompute"), {"16GiB": 1.11}),
        (TRAIN, {"16GiB": 1.737}),
    ],
    ids=["infer", "infer coded", "token", "token coded", "recompute", "plain"],
)
def test_measured_rows(words: tuple[str, ...], measured: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    model, *options = words
    command = ["estimate", f"estimate_models:{model}", *options, "--machine", "h200"]
    assert cli.main([*command, "--device-budget", ",".join(measured), "--quick", "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    figures = {known: row["seconds"] for known, row in zip(measured.items(), rows, strict=True)}
    assert figures == {row: pytest.approx(row[1], rel=AGED.get(row, TOLERANCE)) for row in measured.items()}
