"""The command line: exit codes, output, the demo's parts that need no engine."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import tierpage
from tierpage import cli, demo
from tierpage.demo_model import ByteGpt, Shape, batches, corpus, shape_for, write_text
from tierpage.errors import ConfigError
from tierpage.progress import progress


def test_version_and_help(capsys):
    for arguments, expected in (
        (["--version"], f"tierpage {tierpage.__version__}"),
        (["--help"], "doctor"),
        (["demo", "-h"], "--size"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["dcotor"], ["demo", "--steps", "x"], ["doctor", "--nothing"]])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert re.fullmatch(r"tierpage.*: `tierpage.* --help` lists what can be given\.\n", capsys.readouterr().err)


def test_doctor_json_in_a_process(tmp_path):
    command = [sys.executable, "-m", "tierpage", "doctor", "--json", "--no-speed", str(tmp_path / "missing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    data = json.loads(done.stdout)
    assert done.returncode == data["exit_code"] == 2
    assert [row["state"] for row in data["rows"] if row["name"] == "directory"] == ["FAIL"]


@pytest.mark.parametrize(
    "arguments",
    [["--size", "8G"], ["--steps", "0"], ["--device", "tpu"], ["--size", "64MiB", "--nvme-path", "/no/such/place"]],
)
def test_demo_errors_exit_with_2(arguments, capsys, monkeypatch):
    monkeypatch.setattr(demo, "run_plain", lambda *_: demo.Result(["0x0p+0"], {}, [1.0]))
    assert cli.main(["demo", "--device", "cpu", *arguments]) == 2
    assert "tierpage demo:" in capsys.readouterr().err
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_demo_needs_no_numpy(tmp_path):
    """The first command of the README runs where nothing but torch is installed."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ModuleNotFoundError('no numpy here')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    options = ["--device", "cpu", "--size", "64MiB", "--steps", "2", "--text-bytes", "4", "--nvme-path", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tierpage", "demo", *options],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("size", [64 << 20, 256 << 20, 8 * 10**9, 40 * 10**9])
def test_shape_has_the_size_asked_for(size):
    shape = shape_for(size)
    assert 1 <= shape.state_bytes() / size < 1.5
    assert shape.width % shape.heads == 0
    assert 2 * shape.largest_parameter_bytes() < size // 4


def test_model_text_and_batches():
    shape = Shape(2, 64, 2, 32)
    model = ByteGpt(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters()
    assert b"import" in corpus(200_000)
    first, again = batches(corpus(200_000), 2, 3, 32, 0), batches(corpus(200_000), 2, 3, 32, 0)
    assert first[0].shape == (3, 33)
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert len(write_text(model, "cpu", b"def", 5, 0)) == 5


def test_compare_finds_one_bit():
    plain = demo.Result([(1.0).hex(), (0.5).hex()], {"a": "1", "b": "2"}, [1.0, 1.0])
    assert demo.compare(plain, plain) == []
    assert len(demo.compare(replace(plain, losses=[(1.0).hex(), (0.5 + 2**-53).hex()]), plain)) == 1
    assert demo.compare(replace(plain, hashes={"a": "1"}), plain) == ["parameter b: bytes differ"]


def test_options_are_checked():
    parse = cli.build_parser().parse_args
    with pytest.raises(ConfigError, match="--batch 0"):
        demo.Options.from_command_line(parse(["demo", "--batch", "0", "--device", "cpu"]))
    assert demo.Options.from_command_line(parse(["demo", "--device", "cpu"])).state_bytes() == 256 << 20


def test_progress_is_silent_without_a_terminal():
    stream = io.StringIO()
    with progress("x", 2, stream) as advance:
        advance("a")
    assert stream.getvalue() == ""


def test_progress_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # one that is dumb gets no bar
    stream = io.StringIO()
    stream.isatty = lambda: True
    with progress("paged", 2, stream) as advance:
        advance("loss 1.0")
    assert "paged" in stream.getvalue()
