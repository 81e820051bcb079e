"""``tierpage run``: what a program that is not edited sees, computes and leaves behind, compared with plain python."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

import harness
from tierpage import cli
from tierpage._run.command import device_of_rank, split
from tierpage._run.status import status, status_text
from tierpage.settings import parse_request

pytestmark = pytest.mark.skipif(harness.DEVICE != "cpu", reason="about the command; it pages on the host device here")

BUDGETS = ["--device", "cpu", "--device-budget", "8MiB", "--host-budget", "64MiB"]


def python(*words: str, folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """A Python process in ``folder``, with its output."""
    environment = {**harness.child_environment(), **more.pop("environment", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, **more
    )  # type: ignore[call-overload,no-any-return]


def tierpage_run(*words: str, folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    return python("-m", "tierpage", "run", *BUDGETS, *words, folder=folder, **more)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


PROBE = '''
"""What a program can know of itself."""
import json, os, sys
main = sys.modules["__main__"]
spec = globals()["__spec__"]
names = sorted(set(globals()))
known = {
    "argv": sys.argv, "path": sys.path[0], "names": names, "is main": main.__dict__ is globals(),
    "spec": spec and [spec.name, spec.origin, spec.parent], "loader": type(__loader__).__name__,
    "builtins": type(__builtins__).__name__, "flags": str(sys.flags),
    **{name: globals()[name] for name in ("__name__", "__file__", "__package__", "__cached__", "__doc__")},
}
print(json.dumps(known))
import neighbour
'''

WAYS = {
    "script": ["./package/../probe.py", "a b", "--device", "x", "--", "-m", "--de", "--status", "-h"],
    "link": ["links/probe.py", "1"],
    "compiled": ["probe.pyc", "--set"],
    "folder": ["./package", "--summary"],
    "zip": ["probe.zip", "x"],
    "package": ["-m", "package", "--trace", "x"],
    "module": ["-m", "package.inner", "-m", "x"],
}


@pytest.mark.parametrize("way", WAYS)
def test_program_sees_what_it_sees_without(way: str, tmp_path: Path) -> None:
    for name in ("probe.py", "package/__main__.py", "package/inner.py"):
        write(tmp_path, name, PROBE)
    for name in ("neighbour.py", "package/neighbour.py", "package/__init__.py"):
        write(tmp_path, name, "import sys; print(sys.argv[0] == '-m')")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "probe.py").symlink_to("../probe.py")
    with zipfile.ZipFile(tmp_path / "probe.zip", "w") as file:
        file.writestr("__main__.py", PROBE)
        file.writestr("neighbour.py", "")
    code = "import py_compile; py_compile.compile('probe.py', 'probe.pyc', doraise=True)"
    assert python("-c", code, folder=tmp_path).returncode == 0

    plain, paged = python(*WAYS[way], folder=tmp_path), tierpage_run(*WAYS[way], folder=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert outcome(paged) == outcome(plain)


def test_options_end_where_the_program_begins() -> None:
    for words, own, program in (
        (["a.py", "--device", "cpu"], [], ["a.py", "--device", "cpu"]),
        (["--summary", "a.py", "--summary"], ["--summary"], ["a.py", "--summary"]),
        (["--device", "cpu", "-m", "a", "-m", "b"], ["--device", "cpu"], ["-m", "a", "-m", "b"]),
        (["--device=cpu", "-ma", "b"], ["--device=cpu"], ["-m", "a", "b"]),
        (["--no-status", "--", "-a.py", "--"], ["--no-status"], ["-a.py", "--"]),
        (["--set", "prefetch=off", "--trace", "t"], ["--set", "prefetch=off", "--trace", "t"], []),
        (["-m"], [], ["-m"]),
    ):
        assert split(words) == (own, program)


TRAIN = """
import hashlib, torch
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)])
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for step in range(3):
    loss = model(torch.randn(32, 512)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(float(loss).hex())
for parameter in model.parameters():
    print(hashlib.sha256(parameter.detach().numpy().tobytes()).hexdigest())
"""


def test_same_bits_and_a_summary_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, "train.py", TRAIN)
    plain, paged = python("train.py", folder=tmp_path), tierpage_run("--summary", "train.py", folder=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert (paged.returncode, paged.stdout) == (0, plain.stdout)
    assert "tierpage memory on cpu:0" in paged.stderr
    assert "faults 0," not in paged.stderr, "nothing was paged"


ENDINGS = {
    "text": "sys.exit('the end')",
    "error": "\ndef deeper():\n    [][1]\ntry:\n    deeper()\nexcept IndexError:\n    raise ValueError('no')",
    "syntax": "\nx = = 1",
    "ctrl-c": "signal.raise_signal(signal.SIGINT)",
    "killed": "os.kill(os.getpid(), signal.SIGTERM)",
    "hook": "sys.excepthook = lambda *a: print(traceback.format_exception(*a), a[1].__traceback__ is a[2]); 1 / 0",
    "thread": "threading.Thread(target=lambda: (time.sleep(0.2), print('thread', flush=True))).start(); [][0]",
    "stdin": "print(sys.stdin.read()); sys.exit(None)",
    "closed": "sys.stderr.close(); sys.stdout.close(); sys.exit(4)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_program_ends_as_without(ending: str, tmp_path: Path) -> None:
    """Exit code or signal, everything on stdout and stderr, and the order of what runs at the end."""
    head = """
        import atexit, os, signal, sys, threading, time, traceback
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit.register(print, "first", file=sys.__stdout__)
        atexit.register(lambda: print("second", sys.excepthook is sys.__excepthook__))
    """
    write(tmp_path, "program.py", textwrap.dedent(head) + ENDINGS[ending] + "\n")
    plain = python("program.py", folder=tmp_path, input="one\ntwo")
    assert outcome(tierpage_run("program.py", folder=tmp_path, input="one\ntwo")) == outcome(plain)


def test_what_comes_at_the_end_comes_last(tmp_path: Path) -> None:
    """After the program's threads and its own handlers; a child that leaves through the end has no part in it."""
    write(tmp_path, "program.py", """
        import atexit, os, sys, threading, time
        import torch
        atexit.register(lambda: print("handler", file=sys.stderr))
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        x = torch.ones(1 << 20)
        os.mkdir("elsewhere")
        os.chdir("elsewhere")
        threading.Thread(target=lambda: (time.sleep(0.3), print("worker", file=sys.stderr))).start()
        raise ValueError("no")
    """)  # fmt: skip
    done = tierpage_run("--summary", "--trace", "trace.json", "program.py", folder=tmp_path)
    assert done.returncode == 1
    # The lines alone: Python 3.12 warns of the fork, and says "multi-threaded" in it.
    places = [done.stderr.index(text) for text in ("ValueError: no", "\nworker\n", "tierpage memory on cpu:0")]
    assert places == sorted(places)
    assert done.stderr.rindex("handler") < places[-1]
    assert done.stderr.count("tierpage memory on cpu:0") == 1
    assert any(
        event.get("cat") == "tierpage" for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    )


def test_children_run_without_paging(tmp_path: Path) -> None:
    """Workers by fork and by spawn, and what __main__ defines travels to them and back."""
    write(tmp_path, "program.py", """
        import multiprocessing, pickle, sys
        import torch, tierpage

        class Rows(torch.utils.data.Dataset):
            def __len__(self):
                return 8
            def __getitem__(self, index):
                assert not tierpage.is_enabled()
                return torch.full((1000,), float(index))

        def doubled(x):
            return x * 2, tierpage.is_enabled()

        if __name__ == "__main__":
            rows = Rows()
            assert type(pickle.loads(pickle.dumps(rows))) is Rows
            weight = torch.ones(1 << 20)
            assert tierpage.where(weight).paged
            for start in ("fork", "spawn"):
                loader = torch.utils.data.DataLoader(rows, batch_size=4, num_workers=1, multiprocessing_context=start)
                print(start, [float((batch * weight[:1000]).sum()) for batch in loader], flush=True)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(doubled, [3]), sys.argv)
    """)  # fmt: skip
    done = tierpage_run("program.py", "x", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    sums = "[6000.0, 22000.0]"
    assert done.stdout == f"fork {sums}\nspawn {sums}\n[(6, False)] ['program.py', 'x']\n"


def test_program_that_switches_tierpage_on_itself(tmp_path: Path) -> None:
    write(tmp_path, "program.py", """
        import sys, tierpage
        with tierpage.enable(device_budget="8MiB", device="cpu"):
            print(tierpage.config().origins["device_budget"])
        print(tierpage.is_enabled())
        try:
            tierpage.enable(device_budget="16MiB")
        except tierpage.ConfigError as error:
            print(error)
        tierpage.disable()
        with tierpage.enable(device="cpu", device_budget="16MiB", host_budget="16MiB"):
            print(tierpage.config().device_budget >> 20)
    """)  # fmt: skip
    done = tierpage_run("--summary", "program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "command line\nTrue\n"
        "tierpage is already enabled with other values: device_budget: asked 16777216, in force 8388608. "
        "`tierpage run` did that: give it these values, or start this program without it.\n16\n"
    )
    said = "tierpage run: the program has switched tierpage off, so there is no summary, no trace and no report.\n"
    assert done.stderr == said


def test_settings(tmp_path: Path) -> None:
    """The command line wins over TIERPAGE_CONF; warnings of the start are lines of the command."""
    write(tmp_path, "program.py", """
        import tierpage
        config = tierpage.config()
        print(config.host_budget >> 20, config.nvme_path, config.prefetch, config.policy, config.origins["policy"])
    """)  # fmt: skip
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    more = ["--nvme-path", "a", "--nvme-path", "b", "--nvme-budget=64MiB", "--set", "prefetch=off"]
    conf = {"TIERPAGE_CONF": "host_budget:32MiB,policy:clock,prefetch:on"}
    done = tierpage_run(*more, "--", "program.py", folder=tmp_path, environment=conf)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"64 {(str(tmp_path / 'a'), str(tmp_path / 'b'))} False clock TIERPAGE_CONF\n"
    assert not [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]
    done = python("-m", "tierpage", "run", "--device=cpu", "--device-budget=1MiB", "program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no program is named"),
        (["-m"], "no program is named"),
        (["nowhere.py"], "cannot open 'nowhere.py': No such file"),
        (["-"], "cannot open '-'"),
        (["empty"], "'empty' has no __main__.py"),
        (["-m", "no_such_module"], "no module named 'no_such_module'"),
        (["-m", "program.py"], "Leave out -m to run the file"),
        (["-m", "..x"], "no module named '..x'"),
        (["--device-budget", "8G", "program.py"], "write 8GiB"),
        (["--set", "prefetsch=off", "program.py"], "Did you mean 'prefetch'"),
        (["--set", "prefetch", "program.py"], "write --set name=value"),
        (["--host-budget", "1GiB", "--set", "host_budget=2GiB", "program.py"], "'host_budget' is given twice"),
        (["--device", "tpu", "program.py"], "is not a device"),
        (["--nvme-path", "nowhere", "program.py"], "nowhere"),
        (["--trace", "nowhere/trace.json", "program.py"], "--trace"),
        (["--sumary", "program.py"], "there is no option '--sumary'"),
        (["--dev", "cpu", "program.py"], "there is no option '--dev'"),
    ],
)
def test_errors_of_the_command(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tierpage

    write(tmp_path, "program.py", "raise AssertionError('it ran')")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    assert cli.main(["run", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.startswith("tierpage run: ")
    assert printed.err.count("\n") == 1
    assert not tierpage.is_enabled()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "program.py"]


def test_errors_of_packages_are_the_program_s(tmp_path: Path) -> None:
    write(tmp_path, "package/__init__.py", "import no_such_thing")
    write(tmp_path, "package/module.py", "")
    write(tmp_path, "sound/__init__.py", "")
    done = tierpage_run("-m", "package.module", folder=tmp_path)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_thing'" in done.stderr
    assert "_run" not in done.stderr
    done = tierpage_run("--summary", "-m", "sound.module", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("tierpage run: no module named 'sound.module'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("way", ["module", "no-python"])
def test_under_torchrun(way: str, tmp_path: Path) -> None:
    program = write(tmp_path, "program.py", "import os, tierpage; print(os.environ['RANK'], tierpage.is_enabled())")
    script = Path(sys.executable).with_name("tierpage")
    if way == "no-python" and not script.exists():
        pytest.skip("the command tierpage is not installed beside this Python")
    start = ["-m", "tierpage"] if way == "module" else ["--no-python", str(script)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = python(*launcher, *start, "run", *BUDGETS, str(program), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "0 True", "1 True"]
    assert os.listdir(tmp_path) == ["program.py"]


def screen(sent: str) -> list[str]:
    """The lines of a terminal after these characters: what a person sees at the end."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[K|[\r\n]|[^\r\n\x1b]+", sent):
        if part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][column + len(part) :]
            column += len(part)
    return lines


def on_terminal(
    *words: str, folder: Path, typed: str = "", columns: int = 120, buffered: bool = True
) -> tuple[int, str]:
    """Exit code and everything sent to the terminal by a Python process whose three files are one terminal.

    ``typed`` is typed as soon as the process has asked for it with a question mark.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env={**harness.child_environment(), "TERM": "xterm", "PYTHONUNBUFFERED": "" if buffered else "1"},
    )  # fmt: skip
    os.close(theirs)
    sent = b""
    with contextlib.suppress(OSError):  # EIO: the process has ended
        while data := os.read(ours, 4096):
            sent += data
            if typed and b"?" in sent:
                time.sleep(1.5)  # the line must not come in between
                os.write(ours, typed.encode())
                typed = ""
    os.close(ours)
    return process.wait(timeout=60), sent.decode()


def test_status_line_gives_way_to_the_program(tmp_path: Path) -> None:
    """Whole lines, parts of lines, questions, colours, children and tracebacks stand as the program wrote them."""
    write(tmp_path, "program.py", """
        import os, sys, time, torch
        x = [torch.ones(1 << 20) for _ in range(4)]
        time.sleep(1.2)
        print("one")
        time.sleep(1.2)
        print("two, ", end="", flush=True)
        time.sleep(1.2)
        print("two", file=sys.stderr)
        print("\\x1b[0m", end="", flush=True)
        time.sleep(1.2)
        print("name", input("name?"))
        sys.stdout.write(sys.stdin.readline())
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        time.sleep(1.2)
        raise ValueError("no")
    """)  # fmt: skip
    code, sent = on_terminal("-m", "tierpage", "run", *BUDGETS, "program.py", folder=tmp_path, typed="joe\nand more\n")
    assert code == 1
    assert sent.count("\r\x1b[Ktierpage: device 8.0 MiB of 8.0 MiB | RAM 8.0 MiB of") >= 3
    seen = [line for line in screen(sent.replace("\x1b[0m", "")) if line != "and more"]
    assert seen[:3] == ["one", "two, two", "name?joe"], seen
    assert seen[3] == "name joe"
    assert seen[-3:] == ['    raise ValueError("no")', "ValueError: no", ""]
    assert all(part.startswith("\r\x1b[K") for part in re.findall(r".{4}tierpage:", sent, re.DOTALL))
    assert max(map(len, re.findall(r"tierpage:[^\r]*", sent))) < 120


def test_status_line_is_where_it_is_wanted(tmp_path: Path) -> None:
    write(tmp_path, "program.py", """
        import sys, time
        time.sleep(1.3)
        print(sys.stdout.isatty(), [name for name in ("write", "readinto") for f in (sys.stdout, sys.stdin)
            if name in vars(getattr(f.buffer, "raw", f.buffer))])
    """)  # fmt: skip
    command = ("-m", "tierpage", "run", *BUDGETS)
    code, sent = on_terminal(*command, "--no-status", "program.py", folder=tmp_path)
    assert (code, sent) == (0, "True []\r\n")
    done = tierpage_run("program.py", folder=tmp_path)
    assert outcome(done) == (0, "False []\n", "")


def test_status_of_a_program_that_switches_tierpage_off(tmp_path: Path) -> None:
    write(tmp_path, "program.py", """
        import time, tierpage
        time.sleep(1.3)
        tierpage.disable()
        time.sleep(1.3)
        print("off")
    """)  # fmt: skip
    code, sent = on_terminal(
        "-m", "tierpage", "run", *BUDGETS, "program.py", folder=tmp_path, columns=30, buffered=False
    )
    assert code == 0
    assert screen(sent) == ["off", ""]
    assert sent.count("tierpage: device") == 1
    assert max(map(len, re.findall(r"tierpage:[^\r]*", sent))) == 29


def test_status_text() -> None:
    before = {"link_bytes.to_device": 10**9, "stall_seconds.total": 5.0}
    now = {
        "budget_bytes.device": 8 << 20, "resident_bytes.device.current": 4 << 20, "budget_bytes.host": 0,
        "link_bytes.to_device": 4 * 10**9, "link_bytes.to_host": 10**9, "stall_seconds.total": 5.5,
    }  # fmt: skip
    expected = "tierpage: device 4.0 MiB of 8.0 MiB | up 1.50 down 0.50 GB/s | stalled 25%"
    assert status_text(now, before, 2.0) == expected
    assert status_text(before, now, 2.0).endswith("up 0.00 down 0.00 GB/s | stalled 0%")
    assert status_text(now, before, 0.0).endswith("stalled 0%")


def test_one_rank_shows_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert status(True) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert status(None) is None  # no terminal
    assert status(True) is not None


@pytest.mark.parametrize(
    ("rank", "asked", "chosen"),
    [("1", {}, "cuda:1"), ("1", {"device": "cuda"}, "cuda:1"), ("1", {"device": "cuda:0"}, None),
     ("1", {"device": "cpu"}, None), ("2", {}, None), ("", {}, None)],
)  # fmt: skip
def test_device_of_a_rank(
    rank: str, asked: dict[str, object], chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of_rank(parse_request(asked, None)) == chosen
