"""What the commands say to input that cannot work: one line on stderr that says what and what to do, exit code 2.

Nothing is printed to stdout, no file is made, and tierpage is off.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
import tierpage
from tierpage import cli

pytestmark = pytest.mark.skipif(harness.DEVICE != "cpu", reason="about the command line; nothing is paged")

MODELS = """
import torch

number = 5

def takes_tokens(): return torch.nn.Embedding(8, 8)
def takes_floats(): return torch.nn.Linear(8, 8)
def raises(): raise RuntimeError("two\\nlines")
def ends(): raise SystemExit(3)
def returns_a_number(): return 3
"""
FILES = {
    "program.py": "print('it ran')\n",
    "bad_input_models.py": MODELS,
    "bad_input_ends.py": "raise SystemExit(0)\n",
    "cut.json": '{"traceEvents": [',
    "text.json": "hello\n",
    "empty.json": "",
    "number.json": '{"traceEvents": 3}',
    "other.json": '{"traceEvents": []}',
    "config.json": "{}",
    "model.safetensors": "x" * 100,
}
HOST = "--device=cpu --device-budget=8MiB --host-budget=64MiB"
ON = "--machine rtx4090 --device-budget 1GiB"

# The command line, and a part of what is said about it.
CASES = [
    ("", "the following arguments are required: COMMAND"),
    ("dcotor", "invalid choice: 'dcotor'"),
    ("--bogus run", "--bogus"),
    ("run", "no program is named"),
    ("run nowhere.py", "cannot open 'nowhere.py'"),
    ("run -m", "no program is named"),
    ("run -m no.such.module", "no module named 'no.such.module'"),
    ("run folder", "'folder' has no __main__.py"),
    ("run --bogus program.py", "there is no option '--bogus'"),
    ("run --device-budget", "--device-budget: expected one argument: `tierpage run --help` lists"),
    ("run --status=yes program.py", "ignored explicit argument 'yes'"),
    ("run --device tpu program.py", "device='tpu' is not a device"),
    ("run --device-budget 8G program.py", "is ambiguous: write 8GiB"),
    (f"run {HOST} --nvme-path /no/such program.py", "does not exist: create the directory"),
    (f"run {HOST} --nvme-path program.py program.py", "is not a directory"),
    (f"run {HOST} --set policy=bogus program.py", "is not one of 'auto', 'clock'"),
    (f"run {HOST} --set bogus=1 program.py", "no setting 'bogus'"),
    (f"run {HOST} --set bogus program.py", "has no value: write --set name=value"),
    (f"run {HOST} --set =1 program.py", "has no name: write --set name=value"),
    (f"run {HOST} --set device=cpu program.py", "given twice"),
    (f"run {HOST} --trace /no/such/file program.py", "--trace '/no/such/file' cannot be written"),
    (f"run {HOST} --report folder program.py", "no ordinary file: give --report the name of another one"),
    (f"run {HOST} --report other.json --trace other.json program.py", "give each a file of its own"),
    ("report", "the following arguments are required: TRACE"),
    ("report nowhere.json", "cannot read 'nowhere.json'"),
    ("report folder", "cannot read 'folder': Is a directory"),
    ("report cut.json", "cut off"),
    ("report text.json", "is not JSON"),
    ("report empty.json", "is not JSON"),
    ("report number.json", "is JSON, but no Chrome trace"),
    ("report other.json", "holds nothing of tierpage"),
    ("report other.json -o other.json", "is the trace itself: give another name with -o"),
    ("report other.json -o folder", "no ordinary file: give another name with -o"),
    ("report other.json -o /no/such/page.html", "cannot be written"),
    ("report other.json another", "unrecognized arguments: another: `tierpage report --help` lists"),
    ("top abc", "'abc' is no process id"),
    ("top 0", "there is no process 0"),
    ("top 999999999", "there is no process 999999999"),
    ("top --interval", "--interval: expected one argument"),
    ("top --interval 0", "'0' is no interval"),
    ("top --bogus", "unrecognized arguments: --bogus: `tierpage top --help` lists"),
    ("doctor --bogus", "unrecognized arguments: --bogus: `tierpage doctor --help` lists"),
    ("demo --steps x", "invalid int value: 'x'"),
    ("demo --device tpu", "device='tpu' is not a device"),
    ("demo --device cpu --trace /no/such/file", "--trace '/no/such/file' cannot be written"),
    ("estimate", "the following arguments are required: MODEL"),
    (f"estimate nowhere {ON}", "neither module:factory nor a file or folder"),
    (f"estimate no_such_module:factory {ON}", "cannot be imported"),
    (f"estimate bad_input_ends:factory {ON}", "cannot be imported"),
    (f"estimate bad_input_models:nothing {ON}", "has no attribute 'nothing'"),
    (f"estimate bad_input_models:number {ON}", "is of type int, not something to be called"),
    (f"estimate bad_input_models:raises {ON}", "raised RuntimeError: two lines"),
    (f"estimate bad_input_models:ends {ON}", "raised SystemExit: 3"),
    (f"estimate bad_input_models:returns_a_number {ON}", "returned a value of type int, not a torch.nn.Module"),
    (f"estimate bad_input_models:takes_floats {ON}", "needs --inputs module:callable"),
    (f"estimate bad_input_models:takes_tokens {ON} --inputs nothing", "'nothing' is not module:callable"),
    (f"estimate bad_input_models:takes_tokens {ON} --inputs bad_input_models:ends", "--inputs raised TypeError"),
    (f"estimate folder {ON}", "Remedy: give the file or the index itself"),
    (f"estimate config.json {ON}", "is not an object with a model_type"),
    (f"estimate model.safetensors {ON}", "Remedy: fetch the file again"),
    ("estimate bad_input_models:takes_tokens --machine bogus", "there is no machine 'bogus': give one of"),
    (f"estimate bad_input_models:takes_tokens {ON} --batch x", "--batch has 'x'"),
    (f"estimate bad_input_models:takes_tokens {ON} --mode bogus", "invalid choice: 'bogus'"),
    (f"estimate bad_input_models:takes_tokens {ON} --drive fast --nvme-budget 1GiB", "--drive has 'fast'"),
    (f"estimate bad_input_models:takes_tokens {ON} --bogus", "unrecognized arguments: --bogus"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the commands, with some files and an empty folder."""
    (tmp_path / "folder").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("TIERPAGE_CONF", raising=False)
    for name in ("bad_input_models", "bad_input_ends"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def code_of(words: list[str]) -> object:
    try:
        return cli.main(words)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("line", "said"), CASES, ids=[line or "nothing" for line, _ in CASES])
def test_one_line_and_exit_code_2(line: str, said: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    words = line.split()
    code = code_of(words)
    printed = capfd.readouterr()
    assert (code, printed.out) == (2, ""), printed.err
    assert printed.err.count("\n") == 1, printed.err
    command = ["tierpage", *words[:1]] if words and words[0] in ("run", *cli.COMMANDS) else ["tierpage"]
    assert printed.err.startswith(f"{' '.join(command)}: ")
    assert said in printed.err
    assert sorted(folder.rglob("*")) == before
    assert not tierpage.is_enabled()


def test_an_empty_name_of_a_model_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not the current folder."""
    assert cli.main(["estimate", "", *ON.split()]) == 2
    assert "'' is neither module:factory nor a file" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["top", "top --json", "doctor --no-speed", "doctor --no-speed --json"])
@pytest.mark.parametrize("to", ["full", "closed"])
def test_output_that_cannot_be_written(line: str, to: str, folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    shell = f'exec "$0" -m tierpage {line} {">/dev/full" if to == "full" else ">&-"}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable], env=harness.child_environment(), capture_output=True, text=True, timeout=120
    )  # fmt: skip
    command = line.split()[0]
    assert done.returncode == 2, done.stderr
    reason = "No space left on device" if to == "full" else "stdout is closed"
    assert done.stderr == f"tierpage {command}: cannot write the output: {reason}. Send it elsewhere.\n"


def test_nobody_reads_on(folder: Path) -> None:
    """As in a pipe to head: no message, and the exit code of a process that SIGPIPE ended."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "tierpage", "doctor", "--no-speed"],
        env=harness.child_environment(), stdout=write, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
