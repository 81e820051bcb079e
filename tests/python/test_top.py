"""``tierpage top``: real programs that are looked at, and what their figures mean."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import harness
from tierpage import cli
from tierpage._report.reading import Placed, Stats
from tierpage._top import drawing, places, reading
from tierpage._top.command import Watch, interval
from tierpage._top.figures import Figures, figures
from tierpage._top.publishing import FORMAT, Publisher
from top_programs import CONTROL, Program, connected, published, top

pytestmark = [
    pytest.mark.skipif(harness.DEVICE != "cpu", reason="about the command; it pages on the host device here"),
    pytest.mark.usefixtures("top_folder"),
]

MIB = 1024**2


def test_what_a_program_does(top_program: Program, top_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top_program.do("sys.argv[0] = '/some/where/train\\x1b[2J.py'")
    top_program.do(
        "with tierpage.paged('layers\\x1b]0;x\\x07\\u202e'): tensors = [torch.ones(1 << 19) for _ in range(10)]"
    )
    top_program.do("ended = threading.Event()")
    top_program.do("turn = lambda: [tensor.add_(1) for _ in iter(ended.is_set, True) for tensor in tensors]")
    top_program.do("threading.Thread(target=turn).start()")

    code, out, _ = top("--json", capsys=capsys)
    assert code == 0
    (one,) = json.loads(out)["programs"]
    assert (one["pid"], one["problem"], one["device"]) == (top_program.pid, None, "cpu:0")
    assert one["program"] == "train\ufffd[2J.py"
    assert one["tiers"]["device"]["budget_bytes"] == 8 * MIB
    assert 0 < one["tiers"]["device"]["used_bytes"] <= 8 * MIB
    assert one["tiers"]["nvme"] == {"used_bytes": 0, "peak_bytes": 0, "budget_bytes": 0}
    assert one["live_bytes"] == 20 * MIB
    assert 0.1 <= one["interval_seconds"] < 5
    assert one["links"]["to_device"]["bytes_per_second"] > MIB
    assert 0 < one["links"]["to_device"]["busy_share"] <= 1
    shares = one["stalled_shares"]
    assert 0 < shares["total"] <= 1
    assert shares["total"] == pytest.approx(sum(value for cause, value in shares.items() if cause != "total"), abs=0.01)
    assert [row["name"] for row in one["tags"]] == ["layers\ufffd]0;x\ufffd\ufffd"]
    assert one["tags"][0]["stalled_share"] > 0
    assert one["ooms"] == 0

    code, out, _ = top(capsys=capsys)
    heading, _, row, *_ = out.splitlines()
    assert (code, row.split()[0]) == (0, str(top_program.pid))
    assert " ".join(heading.split()) == "PID on device RAM NVMe up down read write stalled ooms program"
    assert row.endswith("train\ufffd[2J.py")
    code, details, _ = top(str(top_program.pid), "--once", capsys=capsys)
    assert code == 0
    for text in ("live tensors 20.0 MiB", "into the device", "eviction_wait", "layers", "aten::add_", "out-of-memory"):
        assert text in details
    assert not CONTROL.search(out + details)

    top_program.do("tierpage.reset_accumulated_memory_stats(); tierpage.session.current().runtime.reset_stalled_most()")
    assert top(str(top_program.pid), capsys=capsys)[0] == 0
    top_program.do("ended.set()")
    assert top_program.end() == 0
    assert not os.listdir(top_folder)


def test_it_is_there_exactly_while_tierpage_is_on(
    top_program: Program, top_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (socket_,) = top_folder.iterdir()
    assert socket_.is_socket()
    assert top_folder.stat().st_mode & 0o777 == 0o700
    top_program.do("tierpage.disable()")
    assert not os.listdir(top_folder)
    assert json.loads(top("--json", capsys=capsys)[1]) == {"programs": []}
    assert "no program of this user pages now" in top(capsys=capsys)[1]
    code, out, error = top(str(top_program.pid), capsys=capsys)
    assert (code, out) == (2, "")
    assert f"process {top_program.pid} does not page, or cannot be seen" in error
    top_program.do("tierpage.enable(**budgets)")
    assert os.listdir(top_folder) == [socket_.name]
    top_program.do("tierpage.disable()")
    top_program.do("tierpage.enable(**budgets, top=False)")
    assert not os.listdir(top_folder)
    top_program.do("assert 'tierpage-top' not in [thread.name for thread in threading.enumerate()]")
    assert top_program.end() == 0


def test_who_was_killed_leaves_nothing_for_long(top_program: Program, top_folder: Path) -> None:
    top_program.kill()
    assert len(os.listdir(top_folder)) == 1
    other = Program()
    assert [name.partition(".")[0] for name in os.listdir(top_folder)] == [str(other.pid)]
    other.kill()
    assert reading.look() == []
    assert not os.listdir(top_folder)


def test_a_forked_child_has_no_part_in_it(top_program: Program, top_folder: Path) -> None:
    top_program.do("child = os.fork() ; if child == 0: sys.exit(0)")
    top_program.do("os.waitpid(child, 0)")
    assert len(os.listdir(top_folder)) == 1
    # A child that outlives its parent holds no socket at which somebody would wait for an answer.
    top_program.do("child = os.fork() ; while child == 0: time.sleep(1)")
    (one,) = reading.look()
    assert (one.process, one.problem) == (top_program.pid, "")
    number = top_folder.parent / "child"
    top_program.do(f"open({str(number)!r}, 'w').write(str(child))")
    top_program.kill()
    try:
        (name,) = os.listdir(top_folder)
        with pytest.raises(ConnectionRefusedError):
            connected(top_folder, name)
        assert reading.look() == []
    finally:
        os.kill(int(number.read_text()), signal.SIGKILL)


def test_who_asks_and_does_not_listen_holds_nobody_up(top_program: Program, top_folder: Path) -> None:
    (name,) = os.listdir(top_folder)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connected(top_folder, name))
        (one,) = reading.look()
        assert one.problem == ""
        assert top_program.end() == 0
    assert not os.listdir(top_folder)


def test_who_is_gone_before_the_answer_does_no_harm(top_program: Program, top_folder: Path) -> None:
    """Not even where the program lets SIGPIPE end it, as tools that write to pipes do."""
    top_program.do("signal.signal(signal.SIGPIPE, signal.SIG_DFL)")
    (name,) = os.listdir(top_folder)
    top_program.process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{top_program.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    for _ in range(4):
        connected(top_folder, name).close()
    (stopped,) = reading.look()
    assert stopped.problem == "does not answer"
    top_program.process.send_signal(signal.SIGCONT)
    (one,) = reading.look()
    assert one.problem == ""
    assert top_program.end() == 0


def test_no_private_folder_is_no_error_of_the_program(
    top_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Open to others, a link, a file: in both places, since one is enough."""
    other = tmp_path / f"tierpage-{os.geteuid()}"
    top_folder.mkdir(mode=0o755)
    other.symlink_to(top_folder)
    with caplog.at_level(logging.INFO, "tierpage"):
        publisher = Publisher(dict)
        publisher.start()
        publisher.stop()
    assert "`tierpage top` will not show this program" in caplog.text
    assert "open to other users" in caplog.text
    assert not os.listdir(top_folder)
    assert top(capsys=capsys)[::2] == (
        2, f"tierpage top: {str(top_folder)!r} is open to other users: remove it, or `chmod 700` it\n"
    )  # fmt: skip
    top_folder.rmdir()
    top_folder.write_text("")
    other.unlink()
    with published({"format": FORMAT}):
        assert len(os.listdir(other)) == 1
        assert len(reading.look()) == 1


def test_descriptors_that_the_program_has_closed_are_left_alone(top_folder: Path, tmp_path: Path) -> None:
    """Daemons close all they find; what has the number afterwards is not the publisher's."""
    with published({"at_seconds": 1, "stats": {}}) as publisher:
        assert publisher._listener is not None
        number = publisher._listener.fileno()
        with open(tmp_path / "file", "w") as file:
            os.dup2(file.fileno(), number)
        reading.look()  # the thread notices
        assert reading.look() == []
    os.write(number, b"x")
    os.close(number)


def test_what_an_answer_cannot_say_is_a_problem(top_folder: Path) -> None:
    def fails() -> dict[str, Any]:
        raise ValueError("no \x1b[2J")

    for answer, said in ((fails, "ValueError: no \ufffd[2J"), (lambda: {"x": object()}, "not JSON serializable")):
        publisher = Publisher(answer)
        publisher.start()
        (one,) = reading.look()
        publisher.stop()
        assert said in one.problem


def test_a_folder_may_have_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the address of a socket may be."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with published({"at_seconds": 1.0, "stats": {}}):
        assert len(os.listdir(folder / "tierpage")) == 1
        (one,) = reading.look()
        assert one.problem == ""
    assert not os.listdir(folder / "tierpage")


def test_names_of_sockets() -> None:
    own = places.own_name()
    assert places.name_of(str(own)) == places.name_of(own.hidden) == own
    assert not places.is_over(own)
    assert places.is_over(places.Name(own.process, own.began + 1, own.space))
    for text in ("", "1", "1.2", "1.2.3.4", "a.b.c", "1.2.", "\u0661.2.3", "-1.2.3", "1.2.3\n", "1" * 30 + ".2.3"):
        assert places.name_of(text) is None, text


def test_folder_of_another_user(top_folder: Path) -> None:
    top_folder.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(top_folder, 12345, -1)
    with pytest.raises(places.PlaceError, match="belongs to user 12345"), places.opened(str(top_folder)):
        pass
    assert places.folders()[0] == str(top_folder)
    os.chown(top_folder.parent, 12345, -1)  # as sudo may leave it in the environment
    assert str(top_folder) not in places.folders()
    os.chown(top_folder.parent, 0, -1)


def seen(stats: dict[str, float], at: float, **more: Any) -> reading.Look:
    return reading.Look(places.Name(1, 2, 3), program="p", at_seconds=at, stats=Stats(stats), **more)


def test_figures_of_two_looks() -> None:
    causes = dict.fromkeys(("fault", "copy_wait", "map", "eviction_wait", "host"), 0.0)

    def waited(name: str, seconds: float, bytes_: float) -> reading.Waited:
        return reading.Waited(name, seconds, bytes_, {**causes, "map": seconds})

    before = seen(
        {"link_bytes.to_device": 1e9, "link_seconds.to_device": 1.0, "stall_seconds.map": 1.0, "elapsed_seconds": 5.0},
        10.0, tags=(waited("a", 1.0, 1e9), waited("c", 9.0, 1e9)),
    )  # fmt: skip
    after = seen(
        {"link_bytes.to_device": 5e9, "link_seconds.to_device": 2.0, "stall_seconds.map": 9.0, "elapsed_seconds": 7.0},
        12.0, tags=(waited("a", 1.5, 3e9), waited("b", 1.0, 1e9), waited("c", 2.0, 1e9)),
    )  # fmt: skip
    two = figures(after, before)
    assert (two.seconds, two.links["to_device"].bytes_per_second, two.links["to_device"].busy_share) == (2.0, 2e9, 0.5)
    assert two.stalled_shares["map"] == 1.0  # a wait that ended now began long ago
    assert [(row.name, row.stalled_share, row.bytes_per_second) for row in two.tags] == [
        ("b", 0.5, 5e8),  # new since
        ("a", 0.25, 1e9),
        ("c", 0.0, 0.0),  # the program has reset it
    ]
    assert two.tags[0].cause == "map"
    for other in (None, seen({"elapsed_seconds": 9.0}, 10.0), seen({}, 12.0), reading.Look(before.name, problem="x")):
        one = figures(after, other)
        assert one.seconds == 0.0
        assert one.links["to_device"].bytes_per_second == one.stalled_shares["map"] == one.tags[0].stalled_share == 0.0
        assert "-" in drawing.overview([one])[2].split()


@pytest.mark.parametrize("waited", [(0.2, 0.3), (1.5, 1.2), (30.0, 0.1), (0.0, 0.0)])
def test_causes_add_up_to_the_total(waited: tuple[float, float]) -> None:
    """However many threads waited, and since when."""
    before = dict.fromkeys((f"stall_seconds.{cause}" for cause in ("map", "fault", "total")), 5.0)
    after = {name: 5.0 + more for name, more in zip(before, (*waited, sum(waited)), strict=True)}
    shares = figures(seen({**after, "elapsed_seconds": 9.0}, 11.0), seen(before, 10.0)).stalled_shares
    assert shares["total"] == pytest.approx(min(1.0, sum(waited)))
    assert sum(share for cause, share in shares.items() if cause != "total") == pytest.approx(shares["total"])
    assert shares["map"] * waited[1] == pytest.approx(shares["fault"] * waited[0])


def test_heat_of_tags(top_program: Program) -> None:
    """What was waited for between two looks is hot, and cools down from there."""
    for tag in "ab":
        top_program.do(f"with tierpage.paged('{tag}'): {tag} = [torch.ones(1 << 19) for _ in range(10)]")
    watch = Watch(top_program.pid)
    watch.look()
    assert heats(watch) == {"a": None, "b": None}
    for used in "ab":
        top_program.do(f"[tensor.add_(1) for _ in range(3) for tensor in {used}]")
        watch.look()
        known = heats(watch)
        assert known[used] == "hot"
    assert known["a"] == "warm"
    (one,) = watch.programs
    assert {row.name: row.idle_seconds for row in one.tags if row.name == "b"} == {"b": 0.0}
    assert 0 < one.as_json()["tags"][[row.name for row in one.tags].index("a")]["idle_seconds"] < 60
    assert any("  warm, " in line for line in watch.lines())


def test_where_tags_lie_and_when_they_were_used(top_program: Program) -> None:
    """Use is seen where nothing is waited for: all of it fits."""
    for tag in "ab":
        top_program.do(f"with tierpage.paged('{tag}'): {tag} = [torch.ones(1 << 18) for _ in range(2)]")
    watch = Watch(top_program.pid)
    watch.look()
    (one,) = watch.programs
    assert [(row.name, row.live_bytes, row.device_bytes, row.heat) for row in one.tag_places] == [
        ("a", 2 << 20, 2 << 20, None),
        ("b", 2 << 20, 2 << 20, None),
    ]
    for used in "ab":
        top_program.do(f"{used}[0].sum()")
        watch.look()
        (one,) = watch.programs
        heat = {row["name"]: row["heat"] for row in one.as_json()["tag_places"]}
        assert heat[used] == "hot"
    assert heat["a"] == "warm"
    assert any(line.startswith("a ") and "  warm, " in line for line in watch.lines())
    top_program.do("tierpage.evict(b)")
    top_program.do("del a")
    watch.look()
    (one,) = watch.programs
    (row,) = one.tag_places
    assert (row.name, row.device_bytes, row.host_bytes + row.nvme_bytes, row.heat) == ("b", 0, 2 << 20, "warm")


def test_use_over_time() -> None:
    def at(seconds: float, **uses: float) -> reading.Look:
        rows = tuple(Placed(name, 1.0, 2.0, 0.0, 0.0, count) for name, count in uses.items())
        return seen({"elapsed_seconds": seconds}, 100.0 + seconds, tag_places=rows)

    found, one = [], figures(at(0, a=1), None)
    for look in (at(1, a=2), at(2, a=2, b=1), at(3, a=2, b=1), at(70, a=2, b=1)):
        one = figures(look, one.look, one.history)
        found.append({row.name: drawing.heat(row) for row in one.tag_places})
    assert found == [
        {"a": "hot"},
        {"a": "warm, 1.00 s", "b": "hot"},
        {"a": "warm, 2.00 s", "b": "warm, 1.00 s"},
        {"a": "cold, 1 min 09 s", "b": "cold, 1 min 08 s"},
    ]


def heats(watch: Watch) -> dict[str, str | None]:
    (one,) = watch.programs
    return {row["name"]: row["heat"] for row in one.as_json()["tags"]}


def test_heat_over_time() -> None:
    causes = dict.fromkeys(("fault", "copy_wait", "map", "eviction_wait", "host"), 0.0)

    def at(seconds: float, **waited: float) -> reading.Look:
        rows = (reading.Waited(name, value, 0.0, causes) for name, value in waited.items())
        return seen({"elapsed_seconds": seconds}, 100.0 + seconds, tags=tuple(rows))

    def heat_of(one: Figures) -> dict[str, tuple[str | None, str]]:
        return {row.name: (row.heat, drawing.heat(row)) for row in one.tags}

    looks = [at(0, a=1, b=1), at(1, a=2, b=1), at(10, a=2, b=1), at(70, a=2, b=1), at(80, a=2, b=1, c=1)]
    found, one = [], None
    for look in looks:
        one = figures(look, one and one.look, one and one.history)
        found.append(heat_of(one))
    assert found[0] == {"a": (None, "-"), "b": (None, "-")}  # nothing is known from one look
    assert found[1] == {"a": ("hot", "hot"), "b": (None, "-")}
    assert found[2] == {"a": ("warm", "warm, 9.00 s"), "b": (None, "-")}
    assert found[3] == {"a": ("cold", "cold, 1 min 09 s"), "b": ("cold", "cold, over 1 min 10 s")}
    assert found[4]["c"] == ("hot", "hot")
    assert one is not None
    # A look without an answer in between forgets nothing; a program that was switched off and on again begins anew.
    silent = figures(reading.Look(looks[0].name, problem="does not answer"), one.look, one.history)
    assert heat_of(figures(at(81, a=2), silent.look, silent.history)) == {"a": ("cold", "cold, 1 min 20 s")}
    assert heat_of(figures(at(1, a=2), one.look, one.history)) == {"a": (None, "-")}


def test_times_as_text() -> None:
    texts = [drawing.duration(seconds) for seconds in (0, 59.5, 61, 3600, 47 * 3600, 50 * 3600, 1e18)]
    assert texts[:6] == ["0.00 s", "59.50 s", "1 min 01 s", "1 h 00 min", "47 h 00 min", "2 d 2 h"]
    assert len(texts[6]) < 30


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("0", "-1", "nan", "inf", "x", "1e9"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"give seconds from 0\.1 to 3600"):
            interval(text)
    for words in (["--interval", "0"], ["abc"], ["1", "2"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["top", *words])
        assert caught.value.code == 2
    capsys.readouterr()
    code, _, error = top("999999999", capsys=capsys)
    assert code == 2
    assert error.startswith("tierpage top: there is no process 999999999")
    assert error.count("\n") == 1
