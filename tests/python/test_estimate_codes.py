"""`tierpage estimate --compress`: the ratio, the ring that the coder takes, and what crosses the links."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import harness
import tierpage
from tierpage import cli, native
from tierpage._estimate import codes
from tierpage._estimate.codes import budget_with_ring, code_ratio, ring_bytes
from tierpage._estimate.machines import MACHINES, named

MIB, GIB = 1 << 20, 1 << 30
# Ten weights of 32 MiB, read in turn.
WEIGHTS = 10
PROGRAM = "\n".join(
    [
        "tierpage-program 1",
        *(f"A {i} {32 * MIB}" for i in range(WEIGHTS)),
        "S",
        "L",
        *(f"O mm 100 {i}r +{WEIGHTS}:{2 * MIB}\nF {WEIGHTS}" for i in range(WEIGHTS)),
        "S\n",
    ]
)
TOWER = ("estimate_models:Tower", "--tokens", "64", "--quick", "--host-budget", "8GiB")


def replay(**rates: float) -> dict[str, Any]:
    with native.translated():
        return native.engine_module().replay_program(PROGRAM, 128 * MIB, GIB, 0, rates, 4)


def estimate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON of an estimate for an H200."""
    assert cli.main(["estimate", *TOWER, *words, "--machine", "h200", "--json"]) in (0, 1), capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_the_link_carries_codes_and_the_bound_knows_it() -> None:
    plain, coded = replay(), replay(code_ratio=0.7)
    last, before = coded["steps"][-1], plain["steps"][-1]
    content = last["to_device_bytes"] + last["saved_up_bytes"]
    assert last["to_device_bytes"] == pytest.approx(0.7 * content, rel=0.01)
    assert before["saved_up_bytes"] == before["saved_down_bytes"] == 0
    assert coded["bound_seconds"] <= last["seconds"] < before["seconds"]
    assert coded["bound_seconds"] < plain["bound_seconds"]


def test_coders_take_their_time() -> None:
    slow = replay(code_ratio=0.7, encode=1e9, decode=1e9)["steps"][-1]
    assert slow["seconds"] > 2 * replay(code_ratio=0.7)["steps"][-1]["seconds"]


@pytest.mark.parametrize("rates", [{"code_ratio": 1.5}, {"code_ratio": 0.0}, {"encode": 0.0}, {"decode": float("nan")}])
def test_rates_of_codes_that_cannot_be_used_are_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(rates))):
        replay(**rates)


def test_ratios_are_of_the_bytes_of_each_dtype() -> None:
    assert code_ratio([(torch.bfloat16, 5)]) == pytest.approx(0.70)
    assert code_ratio([(torch.float16, 5)]) == pytest.approx(0.89)
    assert code_ratio([(torch.float32, 5)]) == pytest.approx(0.85)
    assert code_ratio([(torch.uint8, 5)]) == code_ratio([]) == 1.0
    assert code_ratio([(torch.bfloat16, 10), (torch.int8, 10)]) == pytest.approx(0.85)


@pytest.mark.parametrize(("budget_mib", "places"), [(4, 3), (8, 3), (12, 6), (64, 6)])
def test_the_ring_is_as_large_as_the_engines(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, budget_mib: int, places: int
) -> None:
    if harness.DEVICE != "cpu":
        pytest.skip("of small budgets")
    settings = {"compress": "on", "device_budget": budget_mib * MIB, "host_budget": 64 * MIB, "frame_bytes_max": MIB}
    place = -(-(MIB // 10 * 9) // 4096) * 4096
    monkeypatch.setattr(codes, "_CODE_BYTES_MAX", place)
    wanted = ring_bytes(budget_mib * MIB, "on")
    if 3 * place > budget_mib * MIB // 2:
        assert wanted == 0
        with pytest.raises(tierpage.TierpageError, match="coded pages need"):
            tierpage.enable(**options | settings)
        return
    tierpage.enable(**options | settings)
    try:
        assert wanted == places * place == tierpage.memory_stats()["code_ring_bytes"]
    finally:
        tierpage.disable()


def test_small_budgets_have_a_small_ring_or_none() -> None:
    place = 30_199_808  # 0.9 of 32 MiB
    assert ring_bytes(16 * GIB, "auto") == 6 * place
    assert ring_bytes(4 * GIB, "auto") == 3 * place
    assert ring_bytes(2 * GIB, "auto") == ring_bytes(16 * GIB, "off") == 0
    assert ring_bytes(GIB, "on") == 6 * place


@pytest.mark.parametrize("compress", ["auto", "off", "on"])
@pytest.mark.parametrize("pages_mib", [2, 100, 2000, 2590, 2700, 5500, 20000])
def test_the_least_budget_with_its_ring_is_the_least(pages_mib: int, compress: str) -> None:
    pages = pages_mib * MIB

    def suffices(budget: int) -> bool:
        left = budget - ring_bytes(budget, compress)
        return left >= pages and not codes.ring_refusal(budget, compress)

    least = budget_with_ring(pages, compress)
    assert suffices(least)
    assert not any(suffices(budget) for budget in range(pages, least, MIB))


def test_rows_say_what_codes_save(capsys: pytest.CaptureFixture[str]) -> None:
    out = estimate(capsys, "--compress", "on", "--device-budget", "182MiB")
    row = out["rows"][0]
    assert (out["compress"], out["code_ratio"]) == ("on", pytest.approx(0.85))
    assert row["code_ring_bytes"] == 3 * 30_199_808
    plain = estimate(capsys, "--compress", "off", "--device-budget", "16MiB")["rows"][0]
    assert plain["code_ring_bytes"] == plain["saved_up_bytes"] == 0
    assert estimate(capsys, "--device-budget", "16MiB")["rows"][0]["code_ring_bytes"] == 0, "no room in a small budget"
    half = estimate(capsys, "--compress", "on", "--device-budget", "190MiB", "--dtype", "bfloat16")
    assert half["code_ratio"] == pytest.approx(0.70)


def test_moved_bytes_are_those_of_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "_CODE_BYTES_MAX", MIB)  # so that a budget of the tower's size has room for a ring
    row = estimate(capsys, "--compress", "on", "--device-budget", "22MiB")["rows"][0]
    assert row["up_bytes"] == pytest.approx(0.85 * (row["up_bytes"] + row["saved_up_bytes"]), rel=0.05)
    assert row["saved_up_bytes"] > 0


def test_on_without_room_for_its_ring_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    out = estimate(capsys, "--compress", "on", "--device-budget", "64MiB")
    assert not out["rows"][0]["runs"]
    assert 'compress="on" needs' in out["rows"][0]["refusal"]
    least = out["batches"][0]["working_set_bytes"]
    rows = estimate(capsys, "--compress", "on", "--device-budget", f"{least},{least - 2 * MIB}")["rows"]
    assert [row["runs"] for row in rows] == [True, False]


def test_the_text_names_the_ratio_and_the_ring(capsys: pytest.CaptureFixture[str]) -> None:
    def text(*words: str) -> str:
        assert cli.main(["estimate", *TOWER, "--machine", "h200", *words]) == 0
        return capsys.readouterr().out

    coded = text("--compress", "on", "--device-budget", "1GiB")
    assert "codes take 0.85 of their pages" in coded
    assert "172.8 MiB" in coded
    assert " ring " in coded
    assert "page code    off" in text("--compress", "off", "--device-budget", "1GiB")
    small = text("--device-budget", "1GiB")
    assert "no budget here has room" in small
    assert " ring " not in small


def test_coders_of_machines_are_plausible() -> None:
    for machine in MACHINES.values():
        rates = machine.code_rates(0.7)
        assert machine.up_rate < rates["encode"] < rates["decode"] < machine.memory_rate
    h200 = named("h200").code_rates(0.7)
    assert (h200["encode"], h200["decode"]) == (pytest.approx(550e9, rel=0.01), pytest.approx(1970e9, rel=0.01))
