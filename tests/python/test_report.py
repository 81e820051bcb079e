"""``tierpage report``: the page's numbers against those of the pager, its structure, and traces that are not to be trusted."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage
from page_structure import Structure, checked
from tierpage import advice, cli, trace
from tierpage._report import aggregating, drawing, words
from tierpage._report.page import page
from tierpage._report.reading import ReportError, Trace, from_content, read_file
from tierpage.memory import TIERS

SECOND = 1_000_000_000
SHORT_WAIT_SECONDS_MAX = 1e-5  # csrc/engine/accounts.cpp: what is shorter makes no slice


def page_of(content: Any, name: str = "trace.json") -> Structure:
    return checked(page(from_content(content, name), name))


def settle() -> None:
    """Waits until prefetches have ended: what ends between the events and the statistics is in one of them only."""
    before = -1
    while (now := sum(tierpage.memory_stats()[f"link_bytes.{link}"] for link in advice.LINKS)) != before:
        before = now
        time.sleep(0.1)


@pytest.fixture
def traced(options: dict[str, Any], device: str, tmp_path: Path) -> Any:
    """A program that paged, its trace in a file, and what the pager said at that time."""
    options["device_budget"] = "640MiB" if device == "cuda" else "2MiB"
    with tierpage.enable(**options) as pager:
        side = int((pager.config.device_budget // 16 / 4) ** 0.5)
        with tierpage.paged("weights"):
            weights = [torch.randn(side, side, device=device) for _ in range(32)]
        x = torch.randn(4, side, device=device)
        for _ in range(6):
            y = x
            for weight in weights:
                y = torch.tanh(y @ weight)
        settle()
        content = trace.trace_of_now()
        path = tmp_path / "trace.json"
        trace.write_json(path, content)
        yield path, content
        del weights, weight, x, y


def test_numbers_are_those_of_the_pager(traced: Any) -> None:
    path, content = traced
    assert cli.main(["report", str(path)]) == 0
    text = (path.parent / "trace.html").read_text()
    found = checked(text)
    totals = content["otherData"]["tierpage_totals"]
    stats = totals["stats"]
    assert advice.verdict(stats) in text.replace("&#x27;", "'")
    for card in (totals["device"], words.seconds(stats["elapsed_seconds"])):
        assert any(shown.startswith(card) for shown in found.cards), card
    for tier in TIERS:
        shown = found.row("tiers", words.TIER_NAMES[tier])
        assert shown[1:3] == [words.size(stats[f"resident_bytes.{tier}.{what}"]) for what in ("current", "peak")]
    for link, name in advice.LINKS.items():
        size, busy = stats[f"link_bytes.{link}"], stats[f"link_seconds.{link}"]
        assert found.row("links", name)[1:3] == [words.size(size), f"{busy:.3f}"]
    for cause in (*advice.CAUSES, "total"):
        shown = found.row("causes", cause)
        assert shown[1:3] == [words.count(stats[f"stall_count.{cause}"]), f"{stats[f'stall_seconds.{cause}']:.3f}"]
    for table, rows in (("by-operator", totals["operators"]), ("by-tag", totals["tags"])):
        assert rows
        assert [row[0] for row in found.tables[table][1:]] == [row["name"] for row in rows[:20]]
        assert [row[1] for row in found.tables[table][1:]] == [words.count(row["count"]) for row in rows[:20]]
    assert found.row("by-tag", "weights")
    (place,) = totals["tag_places"]
    sizes = [place[what] for what in ("bytes", "device", "host", "nvme")]
    assert sizes[0] <= sum(sizes[1:])
    assert 0 < sizes[1] < sizes[0]  # the device holds a part of the weights
    assert found.row("tag-places", "weights") == ["weights", *map(words.size, sizes), words.count(place["uses"])]
    assert place["uses"] > 0


def test_what_the_trace_holds_is_what_the_page_counts(traced: Any) -> None:
    path, content = traced
    read = read_file(str(path))
    stats = content["otherData"]["tierpage_totals"]["stats"]
    moved = aggregating.bytes_moved(read.movements)
    for name in ("host_to_device", "nvme_to_device"):
        assert moved[name][1] == stats[f"fetch_bytes.{name}"]
    assert moved["device_to_host"][1] == stats["writeback_bytes.device_to_host"]
    line = aggregating.time_line(read)
    assert line is not None
    width = line.seconds / aggregating.SLICES
    for link, size in aggregating.link_bytes(moved).items():
        assert sum(line.rates[link]) * width == pytest.approx(size, rel=1e-6, abs=1)
        assert size == stats[f"link_bytes.{link}"]
    assert max(value for value in line.levels["device"] if value is not None) == stats["resident_bytes.device.peak"]
    # Waits too short to be worth a row are in the statistics alone.
    by_cause = aggregating.waits_by_cause(read.waits)
    short = stats["stall_count.total"] - by_cause["total"][0]
    assert 0 <= short < stats["stall_count.total"] / 2
    for cause in (*advice.CAUSES, "total"):
        assert 0 <= stats[f"stall_count.{cause}"] - by_cause[cause][0] <= short
        rounding = 1e-6 + 1e-9 * len(read.waits)
        missing = stats[f"stall_seconds.{cause}"] - by_cause[cause][1]
        assert -rounding <= missing <= rounding + short * SHORT_WAIT_SECONDS_MAX
    operators = {row["name"]: row for row in content["otherData"]["tierpage_totals"]["operators"]}
    for row in aggregating.waits_by(read.waits, lambda wait: wait.operator):
        assert 0 <= operators[row["name"]]["count"] - row["count"] <= short
        assert row["bytes"] <= operators[row["name"]]["bytes"]
    del content["otherData"]["tierpage_totals"]
    bare = page_of(content)  # of a trace without totals the events are counted
    assert bare.row("causes", "total")[1] == words.count(by_cause["total"][0])


def test_ways_in_and_out(traced: Any, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path, _ = traced
    folder = path.parent
    packed = folder / "packed.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert cli.main(["report", str(packed)]) == 0
    assert cli.main(["report", str(path), "-o", str(folder / "named.html")]) == 0
    capfdbinary.readouterr()
    assert cli.main(["report", str(path), "-o", "-"]) == 0
    assert capfdbinary.readouterr().out == (folder / "named.html").read_bytes()
    assert (folder / "packed.html").is_file()
    merged = json.loads(path.read_text())
    merged["traceEvents"] += [{"ph": "X", "name": "theirs", "cat": "cpu_op", "ts": 1, "dur": 10**9, "args": {}}]
    (folder / "merged.json").write_text(json.dumps(merged))
    assert page(read_file(str(folder / "merged.json")), "x") == page(read_file(str(path)), "x")
    assert [name for name in os.listdir(folder) if name.startswith(".tierpage-")] == []


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says while it refuses: one line, exit code 2."""
    assert cli.main(["report", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tierpage report: ")
    assert said.err.count("\n") == 1
    return said.err


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "text": (b"hello", "not JSON"),
    "binary": (bytes(range(256)), "not "),
    "cut off": (b'{"traceEvents":[{"ph":"X","cat":"tierpage","na', "cut off"),
    "number": (b"7", "no Chrome trace"),
    "no events": (b'{"traceEvents":{}}', "no Chrome trace"),
    "another's": (
        b'{"traceEvents":[{"ph":"X","cat":"cpu_op","name":"aten::mm","ts":1,"dur":2}]}',
        "nothing of tierpage",
    ),
    "deep": (b"[" * 200_000, "nested"),
    "digits": (b'{"traceEvents":[' + b"9" * 10_000 + b"]}", "not JSON"),
    "cut off packed": (gzip.compress(os.urandom(5000))[:-2000], "ends too early"),
    "damaged packed": (b"\x1f\x8b" + b"x" * 100, "damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_trace(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words_ = BAD_FILES[name]
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    said = refused([str(path)], capsys)
    assert words_ in said
    assert os.listdir(tmp_path) == ["trace.json"]


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierpage._report.reading._FILE_BYTES_MOST", 1 << 20)
    for name, content in (("large", bytes(1 << 21)), ("packed", gzip.compress(bytes(1 << 26)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ReportError, match="more than 1 GiB"):
            read_file(str(tmp_path / name))


def test_places_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(synthetic(3)))
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    os.link(path, tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    for target, expected in (("trace.json", "the trace itself"), ("link", "the trace itself"), ("pipe", "ordinary"),
                             ("hard", "the trace itself"), ("no/such.html", "folder"), (".", "ordinary")):  # fmt: skip
        assert expected in refused([str(path), "-o", str(tmp_path / target)], capsys)
    assert "cannot read" in refused([str(tmp_path / "missing\n.json")], capsys)
    assert "cannot read" in refused([str(tmp_path)], capsys)
    assert path.read_bytes() == before


EVIL = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\" ' & \u202e\x00\ud800"


def hostile() -> dict[str, Any]:
    """A trace in which everything that can be a text is a script, and everything that can be a number is not one."""
    content = synthetic(200)
    numbers: list[Any] = [-1, 1e308, float("nan"), float("inf"), 10**400, "7", None, True, [], {}, 1e-320, -0.0]
    events = content["traceEvents"]
    several = {event["name"].partition(":")[0]: event for event in events}
    for event in several.values():
        for number in numbers:
            for field in ("ts", "dur", "args", "ph", "name", "cat", "bytes", "page", "operator", "regions", "fault us"):
                other = json.loads(json.dumps(event))
                (other if field in other else other["args"])[field] = number
                events.append(other)
    for event in events:
        if isinstance(event.get("args"), dict) and "operator" in event["args"]:
            event["args"] |= {"operator": EVIL, "tag": EVIL * 100, EVIL: EVIL}
    events += [None, 3, [], "x", {}]
    rows = [{"name": EVIL, "seconds": 1.0, "count": 10**300}, {"name": 7}, None, {"name": "x", "seconds": "y"}]
    names = json.loads(json.dumps(content["otherData"]["tierpage_totals"]["stats"]))
    stats = {name: numbers[index % len(numbers)] for index, name in enumerate(names)} | {EVIL: 1}
    totals = {"device": EVIL, "trace_events_max": -1, "stats": stats, "operators": rows, "tags": {"x": 1}}
    totals["tag_places"] = [*rows, *({"name": EVIL, "bytes": number, "nvme": number} for number in numbers)]
    content["otherData"]["tierpage_totals"] = totals
    return content


def test_hostile_content(tmp_path: Path) -> None:
    name = "<script>alert(2)<>.json"
    (tmp_path / name).write_text(json.dumps(hostile()))
    assert cli.main(["report", str(tmp_path / name)]) == 0
    text = (tmp_path / "<script>alert(2)<>.html").read_text()
    found = checked(text)
    assert "script" not in found.names
    assert "<script" not in text
    assert "alert(1)" in text  # as text
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "nan" not in text
    assert len(found.tables["tag-places"]) == 16  # all that are rows, however wrong, and the heads
    assert re.search(r"[\d\u202f]+ events of the trace, which cannot be true", text)


def test_damaged_files_give_a_page_or_a_reason(tmp_path: Path) -> None:
    """Bytes that are lost, changed or exchanged anywhere in a trace."""
    whole = json.dumps(synthetic(6)).encode()
    chance = random.Random(7)
    path = tmp_path / "trace.json"
    written = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = chance.choice([b"", b"-", b"9999", b'"', b"{", b"null", b"1e999"])
        path.write_bytes(data)
        with contextlib.suppress(ReportError):
            checked(page(read_file(str(path)), "x"))
            written += 1
    assert 0 < written < 150


@pytest.mark.parametrize("seed", range(len(advice.CAUSES)))
def test_no_statistics_stop_the_page(seed: int) -> None:
    """Extremes of everything that the rules divide by."""
    extremes = [0, 1e-320, 1e-12, 1, 1e18, 10**18]
    content = synthetic(5)
    stats = content["otherData"]["tierpage_totals"]["stats"]
    for step in range(18):
        for index, name in enumerate(sorted(stats)):
            stats[name] = extremes[(index * (step + 1) + step // 6 + seed) % len(extremes)]
        again = json.loads(json.dumps(content))
        page_of(again)
    for name in sorted(stats):  # each alone
        content = synthetic(1)
        content["otherData"]["tierpage_totals"]["stats"] = {name: 5}
        page_of(content)


def synthetic(count: int) -> dict[str, Any]:
    """A trace of ``count`` movements, a third as many waits and levels, in one minute."""
    step = 60 * SECOND // max(count, 1)
    directions = (*trace.DIRECTIONS, "map", "unmap")
    events = [
        (directions[number % len(directions)], number * step, step // 2 + 1, 4096 * (1 + number % 7), number % 500)
        for number in range(count)
    ]
    causes = {"fault": 700, "host": 300}
    stalls = [
        {"name": f"aten::op_{number % 50}", "tag": f"tag {number % 3}" if number % 4 else "", "kind": "stall",
         "thread": number % 2, "start_ns": number * step * 3, "duration_ns": 1000, "causes_ns": causes, "bytes": 4096,
         "pages": 1, "predicted_bytes": 4096 * (number % 2), "region_count": 1, "regions": [(number % 90, 1, 4096)]}
        for number in range(count // 3 + 1)
    ]  # fmt: skip
    levels = [
        {"at_ns": number * step * 3, "device": number % 100, "host": 5, "nvme": number, "arriving": 0, "leaving": 1}
        for number in range(count // 15 + 1)
    ]
    names = [f"stall_seconds.{cause}" for cause in (*advice.CAUSES, "total", "max")]
    names += [f"{group}.{link}" for group in ("link_bytes", "link_seconds") for link in advice.LINKS]
    names += [f"recurrence.{name}" for name in names]
    names += [f"budget_bytes.{tier}" for tier in TIERS] + [f"resident_bytes.{tier}.current" for tier in TIERS]
    names += ["elapsed_seconds", "recurrence.elapsed_seconds", "live_bytes.peak", "faults.count", "plan.period_uses",
              "plan.fetched_bytes", "plan.written_bytes", "plan.whole_bytes", "plan.capacity_bytes", "recurrence.uses",
              "recurrence.fetched_bytes", "recurrence.written_bytes", "predictor.predicted", "predictor.mispredicted",
              "prefetch.issued", "prefetch.useful", "prefetch.late", "prefetch.wasted"]  # fmt: skip
    places = [{"name": f"tag {number}", "bytes": 1 << 20, "device": 1 << 20, "host": 0, "nvme": 0, "uses": number}
              for number in range(70)]  # fmt: skip
    totals = {"device": "cpu:0", "trace_events_max": 1 << 18, "stats": dict.fromkeys(names, 1.0), "tag_places": places}
    return trace.build_trace(events, stalls=stalls, levels=levels, totals=totals)


def test_a_large_trace_makes_a_small_page_in_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace.write_json(path, synthetic(300_000 * 3 // 5))  # with waits and levels 300,000 events
    assert len(json.loads(path.read_text())["traceEvents"]) >= 300_000
    start = time.process_time()
    assert cli.main(["report", str(path)]) == 0
    assert time.process_time() - start < 30  # three seconds on an idle machine
    text = (tmp_path / "trace.html").read_text()
    assert len(text) < 400_000
    found = checked(text)
    assert len(found.tables["longest"]) == 21


def test_few_events_are_all_there() -> None:
    found = page_of(synthetic(10))
    assert sum(int(row[1]) for row in found.tables["moved"][1:]) == 8  # two of ten are no movements over a link
    assert len(found.tables["time-table"]) == 1 + aggregating.SLICES // aggregating.GROUP
    assert found.svg_parts
    assert len(found.tables["tag-places"]) == 21  # of 64 that are read
    empty = synthetic(0)
    empty["traceEvents"] = []
    assert page_of(empty).svg_parts == []


def test_time_line_of_known_events() -> None:
    """Ten seconds: one copy of 2 s, a level that lasts, a wait of a second at the end."""
    events = [("host_to_device", 2 * SECOND, 2 * SECOND, 2_000_000, 1)]
    levels = [{"at_ns": at, "device": size, "host": 0, "nvme": 0, "arriving": 0, "leaving": 0}
              for at, size in ((0, 100), (5 * SECOND, 30), (5 * SECOND + 1, 40))]  # fmt: skip
    stall = {"name": "aten::mm", "tag": "", "kind": "stall", "thread": 0, "start_ns": 9 * SECOND, "duration_ns": SECOND,
             "causes_ns": {"map": SECOND}, "bytes": 8, "pages": 1, "predicted_bytes": 0, "region_count": 1,
             "regions": [(7, 1, 8)]}  # fmt: skip
    read = from_content(trace.build_trace(events, stalls=[stall, {**stall, "thread": 1}], levels=levels), "x")
    line = aggregating.time_line(read)
    assert line is not None
    assert line.seconds == pytest.approx(10)
    slices = aggregating.SLICES
    rates = line.rates["to_device"]
    assert rates[slices * 3 // 10] == pytest.approx(1e6)
    assert sum(rate > 1 for rate in rates) == pytest.approx(slices / 5, abs=1)
    device = line.levels["device"]
    assert (device[0], device[slices // 2 - 1], device[slices // 2], device[-1]) == (100, 100, 100, 40)
    assert line.waited[-1] == pytest.approx(1)  # two threads, one stretch of time
    assert sum(line.waited) / slices == pytest.approx(0.1, abs=1e-6)
    assert [(region.number, region.bytes, region.waits) for region in aggregating.regions(read.waits)] == [(7, 16, 2)]


def test_where_pages_were_last() -> None:
    events = [("map", 0, 1, 64, 1), ("nvme_to_device", 1, 1, 64, 1), ("device_to_host", 5, 1, 64, 1),
              ("unmap", 7, 1, 64, 1), ("host_to_device", 1, 1, 64, 2), ("host_to_nvme", 1, 1, 32, 3),
              ("map", 1, 1, 64, 4)]  # fmt: skip
    pages = aggregating.pages(from_content(trace.build_trace(events), "x").movements)
    assert [(one.number, one.total, one.last_seen) for one in pages] == [
        (1, 128, "host"),
        (2, 64, "device"),
        (3, 32, "nvme"),
    ]


def test_paths_of_the_drawing() -> None:
    assert drawing.area([None, 1, 1, 2, None, 0], 2) == "M1 100V50H3V0H4V100ZM5 100V100H6V100Z"
    assert drawing.area([None], 0) == ""
    assert drawing.marks([0, 1e-9, 1]) == "M1 100V92h1V100ZM2 100V0h1V100Z"


@pytest.mark.parametrize(
    ("time_", "text"),
    [
        (0, "0.00 s"),
        (2.5e-7, "0.25 us"),
        (0.0123, "12.3 ms"),
        (1.5, "1.50 s"),
        (12345, "12\u202f345 s"),
        (0.9999, "1.00 s"),
    ],
)
def test_seconds(time_: float, text: str) -> None:
    assert words.seconds(time_) == text


@pytest.mark.skipif(harness.DEVICE != "cpu", reason="about the command; it pages on the host device here")
def test_run_writes_the_page(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import torch\nx = [torch.ones(1 << 20) for _ in range(8)]\nsum(x)\n")

    def run(*words_: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tierpage", "run", "--device", "cpu", "--device-budget", "16MiB",
                   "--host-budget", "64MiB", *words_, "program.py"]  # fmt: skip
        return subprocess.run(
            command, cwd=tmp_path, env=harness.child_environment(), capture_output=True, text=True, timeout=120
        )

    done = run("--report", "page.html", "--trace", "trace.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = checked((tmp_path / "page.html").read_text())
    assert "16.0 MiB" in found.row("tiers", "device")
    for words_, expected in ((["--report", "t", "--trace", "./t"], "both name"), (["--report", "."], "ordinary")):
        done = run(*words_)
        assert done.returncode == 2
        assert done.stderr.startswith("tierpage run: ")
        assert done.stderr.count("\n") == 1
        assert expected in done.stderr


def test_memory_that_the_page_takes() -> None:
    """What is kept of a trace is a fraction of what json made of it, which is let go of meanwhile."""
    import tracemalloc

    content = synthetic(20_000)
    tracemalloc.start()
    read: Trace = from_content(content, "x")
    _, most = tracemalloc.get_traced_memory()
    page(read, "x")
    tracemalloc.stop()
    assert content["traceEvents"] == []
    events = len(read.movements.kinds) + len(read.waits)
    assert most < 600 * events
