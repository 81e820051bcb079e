"""``tierpage top`` and programs that lie, are silent, or are none."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

import harness
from tierpage._top import places, reading
from tierpage._top.publishing import FORMAT
from top_programs import CONTROL, answering, left_behind, published, top

pytestmark = [
    pytest.mark.skipif(harness.DEVICE != "cpu", reason="about the command; it pages on the host device here"),
    pytest.mark.usefixtures("top_folder"),
]

SOUND = {
    "format": FORMAT, "version": "1", "program": "p", "device": "cpu:0", "device_name": "host", "at_seconds": 1.0,
    "stats": {"num_ooms": 3}, "tags": [], "operators": [],
}  # fmt: skip


def lies(**changed: Any) -> bytes:
    return json.dumps({**SOUND, **changed}).encode()


ANSWERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends"),
    "half": (lies()[:-1], "does not speak"),
    "no JSON": (b"\xff\x00\x1b[2J", "does not speak"),
    "deep": (b"[" * 200_000, "does not speak"),
    "list": (b"[1]", "another version"),
    "long number": (b'{"format": ' + b"9" * 100_000 + b"}", "does not speak"),
    "version": (lies(format=FORMAT + 1), "another version"),
    "too much": (lies(program="x" * (2 << 20)), "says too much"),
    "problem": (lies(problem="\x1b[31m\n" * 1000), "\ufffd[31m"),
    "problem of a kind": (lies(problem=[1]), "(not a name)"),
    "time": (lies(at_seconds="1"), "does not speak"),
    "no time": (lies(at_seconds=float("nan")), "does not speak"),
    "stats": (lies(stats=[]), "does not speak"),
    "names": (lies(program="\x1b[2J\x9b1m\r\n\u202e", device={"x": 1}, device_name=None, version="\x1b" * 10_000), ""),
    "numbers": (
        lies(stats={"num_ooms": float("inf"), "resident_bytes.device.current": -1, "budget_bytes.device": 10**400,
                    "stall_seconds.total": True, "elapsed_seconds": "1", "live_bytes.current": [], "\x1b": 1}), ""),
    "rows": (lies(tags=[1, {}, {"name": 5, "seconds": -1}, {"name": "\x1b[2J", "seconds": 1e300}] * 5000), ""),
    "places": (lies(tag_places=[1, {}, {"name": 5, "bytes": -1, "uses": "x"}, {"name": "\x1b[2J"}] * 5000), ""),
    "no places": (lies(tag_places={"a": 1}), ""),
    "no rows": (lies(tags="abc", operators={"x": 1}), ""),
    "sound": (lies(), ""),
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_are_not_trusted(answer: str, top_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent, problem = ANSWERS[answer]
    with answering(top_folder, str(places.own_name()), sent):
        code, out, error = top(capsys=capsys)
        assert (code, error) == (0, "")
        assert problem in out
        code, details, error = top(str(os.getpid()), capsys=capsys)
        assert (code, error) == (0, "")
        code, data, _ = top("--json", capsys=capsys)
    assert not CONTROL.search(out + details)
    assert max(map(len, (out + details).splitlines())) < 300
    assert data.isascii()
    (one,) = json.loads(data, parse_constant=pytest.fail)["programs"]
    assert (one["problem"] is None) == (problem == "")


def test_who_is_silent_or_slow_does_not_delay_the_others(top_folder: Path) -> None:
    space = places.own_name().space + 1  # so that no process has to be there
    with (
        answering(top_folder, f"1.1.{space}", b"{", seconds_between=2),
        answering(top_folder, f"2.1.{space}", *[b" " * 1000] * 100, seconds_between=0.05),
        published({"at_seconds": 1.0, "stats": {}}),
    ):
        began = time.monotonic()
        found = reading.look()
        assert time.monotonic() - began < 3
    assert [(one.process, one.problem) for one in found] == [
        (1, "does not answer"),
        (2, "does not answer"),
        (os.getpid(), ""),
    ]


def test_what_lies_in_the_folder_otherwise_is_left_alone(top_folder: Path, tmp_path: Path) -> None:
    own = places.own_name()
    top_folder.mkdir(mode=0o700)
    (top_folder / "1.2.3").write_text("a file")
    (top_folder / "1.2.4").symlink_to(tmp_path / "elsewhere")
    (top_folder / f"{own.process}.{own.began}.{own.space}.x").mkdir()
    left_behind(top_folder, "other")
    kept = set(os.listdir(top_folder))
    # Sockets that nobody listens to: of a later process with this id, of another space of ids, and half made.
    for name in (f"{own.process}.{own.began + 1}.{own.space}", f"1.1.{own.space + 1}", f".999999999.1.{own.space}"):
        left_behind(top_folder, name)
    assert reading.look() == []
    assert set(os.listdir(top_folder)) == kept
