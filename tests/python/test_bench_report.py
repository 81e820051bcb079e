"""bench/report.py: the tables hold the figures of the rows, wrong rows are named, and the plot is a picture."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

REPORT = Path(__file__).parents[2] / "bench" / "report.py"
GIB = 1 << 30
OWN: dict[str, Any] = {
    "bench": "infer", "shape": "13b", "tokens": 2048, "device_budget_bytes": 16 * GIB, "weight_bytes": 26 * 10**9,
    "working_set_bytes": 10**9, "seconds": 0.185, "bound_seconds": 0.172, "plain_seconds": 0.0924, "bits_equal": True,
    "something_unknown": {"deep": [1, 2, 3]},
}  # fmt: skip
PEER: dict[str, Any] = {
    "bench": "infer", "peer": "double_buffer", "library": "torch", "library_version": "2.11", "shape": "13b", "tokens": 2048,
    "device_budget_bytes": 16 * GIB, "seconds": 0.462, "bits_equal": True, "driver_bytes_above_context": -5,
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "bench": "train", "shape": "3b", "batch": 4, "tokens": 2048, "recompute": True, "hooks": False, "layers": 26,
    "device_budget_bytes": 16 * GIB, "seconds": 1.31, "bound_seconds_of_moved_bytes": 1.0, "bits_equal": None,
}  # fmt: skip
ROWS = [
    OWN,
    {**OWN, "device_budget_bytes": 40 * GIB, "seconds": 0.0916, "bound_seconds": 0.0924},
    {
        "bench": "infer",
        "shape": "13b",
        "tokens": 2048,
        "device_budget_bytes": 3 * GIB,
        "error": "OutOfMemoryError: a|b\nc",
    },
    PEER,
    {**PEER, "peer": "accelerate_cpu", "seconds": 3.69, "bits_equal": False},
    {**PEER, "peer": "slow", "device_budget_bytes": 8 * GIB},
    {**PEER, "peer": "free", "cap": "none"},
    {**PEER, "peer": "plain", "cap": "none", "seconds": 0.0924, "device_budget_bytes": None, "bits_equal": None},
    {
        "bench": "infer",
        "peer": "diffusers_leaf",
        "shape": "13b",
        "tokens": 2048,
        "device_budget_bytes": 16 * GIB,
        "skipped": "missing",
    },
    TRAIN,
    {**TRAIN, "hooks": True, "seconds": 0.86, "bound_seconds_of_moved_bytes": 0.71},
    {**TRAIN, "peer": "roundpipe", "seconds": 1.454, "bits_equal": "stale by design"},
    {**TRAIN, "peer": "fsdp2", "seconds": None, "error": "OutOfMemoryError: x"},
]


def report(folder: Path, rows: list[Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Calls the script on a file with these rows, each an object or a line as it stands."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n")
    command = [sys.executable, str(REPORT), str(file), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tables_hold_the_figures(tmp_path: Path) -> None:
    done = report(tmp_path, ROWS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in (
        "### Inference: 13b, 2048 tokens, one forward",
        "All in device memory: 0.0924 s.",
        "| 40 GiB (all fits) | 0.0916 | 0.0924 | 0.99 | 1.02 | yes | - |",
        "| 16 GiB | 0.185 | 0.172 | 1.08 | 1.10 | yes | double_buffer 0.462, accelerate_cpu 3.69 |",
        "| 3 GiB | refused: OutOfMemoryError: a&#124;b c | - | - | 1.10 | - | - |",
        "| double_buffer | torch 2.11 | 16 GiB | 0.462 | yes | 0 B |",
        "| accelerate_cpu | torch 2.11 | 16 GiB | 3.69 | no | 0 B |",
        "| free | torch 2.11 | none | 0.462 | yes | 0 B |",
        "| plain | torch 2.11 | none | 0.0924 | - | 0 B |",
        "Not measured: diffusers_leaf (missing).",
        "### Training: 3b, 26 layers, 4 sequences of 2048 tokens, recompute, one step",
        "| 16 GiB | 1.31 | 1 | 1.31 | 1.15 and 1.0 s | - | roundpipe 1.45 (stale), fsdp2 failed |",
        "| 16 GiB, optimizer in hooks | 0.86 | 0.71 | 1.21 | 0.75 s | - | roundpipe 1.45 (stale), fsdp2 failed |",
    ):
        assert line in lines, line
    budgets = [line.split("|")[1].strip() for line in lines if line.count("|") == 8 and "GiB" in line.split("|")[1]]
    assert budgets[:3] == ["40 GiB (all fits)", "16 GiB", "3 GiB"]


def test_training_of_adapters_is_not_compared_with_that_of_all(tmp_path: Path) -> None:
    done = report(tmp_path, [*ROWS, {**TRAIN, "lora": 16}])
    assert done.returncode == 0, done.stderr
    assert (
        "### Training: 3b, 26 layers, adapters of rank 16, 4 sequences of 2048 tokens, recompute, one step"
        in done.stdout
    )
    assert "### Training: 3b, 26 layers, 4 sequences of 2048 tokens, recompute, one step" in done.stdout


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(OWN, "seconds"), 'no "seconds"'),
        (without(OWN, "bound_seconds"), 'no "bound_seconds"'),
        (without(OWN, "device_budget_bytes"), 'no "device_budget_bytes"'),
        (without(OWN, "bench"), 'no "bench"'),
        (without(TRAIN, "recompute"), 'no "recompute"'),
        (without(TRAIN, "bound_seconds_of_moved_bytes"), 'no "bound_seconds_of_moved_bytes"'),
        (without(PEER, "seconds"), 'no "seconds"'),
        ({**OWN, "seconds": "fast"}, "\"seconds\" is 'fast'"),
        ({**OWN, "seconds": True}, '"seconds" is'),
        ({**OWN, "seconds": 0}, '"seconds" is'),
        ({**OWN, "seconds": -1}, '"seconds" is'),
        ({**OWN, "seconds": 10**400}, '"seconds" is'),
        ({**OWN, "tokens": 1.5}, '"tokens" is 1.5'),
        ({**OWN, "shape": ["13b"]}, '"shape" is'),
        ({**OWN, "bench": "walk"}, "neither infer nor train"),
        ({**OWN, "bits_equal": 1}, '"bits_equal" is 1'),
        ([OWN], "not a JSON object"),
        ("== infer 12:00:00", "not a line of JSON"),
        ('{"seconds": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not a line of JSON"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_is_written(tmp_path: Path, row: Any, message: str) -> None:
    plot = tmp_path / "plot.png"
    done = report(tmp_path, [PEER, row], "--plot", str(plot))
    assert done.returncode == 1
    assert "rows.jsonl:2: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not plot.exists()


def test_the_text_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- report: begin -->\nold\n<!-- report: end -->\nafter\n")
    for _ in range(2):  # a second time changes nothing
        assert report(tmp_path, ROWS, "--into", str(page)).returncode == 0
        lines = page.read_text().splitlines()
        assert (lines[0], lines[-1]) == ("before", "after")
        assert "old" not in lines
        assert lines.count("### Inference: 13b, 2048 tokens, one forward") == 1
    page.write_text("no markers\n")
    done = report(tmp_path, ROWS, "--into", str(page))
    assert done.returncode == 1
    assert "needs one line" in done.stderr
    assert page.read_text() == "no markers\n"


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, after every chunk's checksum and the whole picture's data were looked at."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, pixels, kinds, size = 8, b"", [], (0, 0)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        pixels += body if kind == b"IDAT" else b""
        kinds.append(kind)
        at += 12 + length
    assert kinds[-1] == b"IEND"
    assert len(zlib.decompress(pixels)) == (1 + 4 * size[0]) * size[1]  # 8 bits of red, green, blue and alpha
    return size


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    done = report(tmp_path, [*ROWS, {**PEER, "peer": "$\\frac"}], "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    width, height = png_size(plot.read_bytes())
    assert min(width, height) > 300
    done = report(tmp_path, [PEER], "--plot", str(plot))
    assert done.returncode == 1
    assert "at least one row of tierpage" in done.stderr


def test_without_matplotlib_the_plot_says_what_to_install(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib"):
        (tmp_path / "matplotlib.py").write_text("raise ImportError('hidden')\n")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(OWN) + "\n")
    command = [sys.executable, "-c", f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); "
               f"sys.argv = ['report.py', {str(file)!r}, '--plot', 'x.png']; runpy.run_path({str(REPORT)!r}, run_name='__main__')"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install matplotlib" in done.stderr
    assert not (tmp_path / "x.png").exists()
