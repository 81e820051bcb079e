"""``tierpage demo``: trains a model whose states are a multiple of the device budget and compares it, bit for bit, with
a plain run of the same program in a child process, which runs first and ends before the paged run begins."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import tierpage
from tierpage import system
from tierpage.demo_model import ByteGpt, Shape, batches, corpus, shape_for, write_text
from tierpage.errors import ConfigError, StorageError
from tierpage.memory import LINKS, TIERS, format_table
from tierpage.progress import progress
from tierpage.settings import parse_request
from tierpage.sizes import parse_size
from tierpage.system import format_bytes
from tierpage.trace import writable_file

MIB = 1024**2
PROMPT = b"def __init__(self"
_HASH_CHUNK = 1 << 20  # elements copied out at a time, so that comparing needs no more memory than training


@dataclass(frozen=True)
class Options:
    """What the demo was asked for. Budgets are sizes as in ``tierpage.enable``, None: a quarter of the states."""

    size: str | None = None
    device: str = "cpu"
    device_budget: str | None = None
    host_budget: str | None = None
    nvme_path: str | list[str] | None = None
    steps: int = 8
    batch: int = 2
    text_bytes: int = 48
    seed: int = 0
    trace: str | None = None

    @classmethod
    def from_command_line(cls, options: argparse.Namespace) -> Options:
        """Checks the command line's values. Raises ConfigError."""
        values = {name: getattr(options, name) for name in cls.__dataclass_fields__}
        values["device"] = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        for name, lowest in (("steps", 1), ("batch", 1), ("text_bytes", 0), ("seed", 0)):
            if values[name] < lowest:
                raise ConfigError(f"--{name.replace('_', '-')} {values[name]} is too small: give at least {lowest}.")
        parse_request({"device": values["device"]}, None)
        if options.trace is not None:
            values["trace"] = writable_file(options.trace, "--trace")
        return cls(**values)

    def state_bytes(self) -> int:
        """Bytes that parameters, gradients and optimizer states shall have at least."""
        default = "256MiB" if self.device == "cpu" else "8GB"
        return parse_size(self.size or default, "--size", fraction_allowed=False).of(0)


@dataclass
class Result:
    """One run: losses as exact hexadecimal text, a hash per parameter, seconds per step."""

    losses: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def step_seconds(self) -> float:
        """Median of the steps after the first, which sets memory up."""
        times = sorted(self.seconds[1:] or self.seconds)
        return times[len(times) // 2]


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """The same kernels in both runs; torch's settings are put back. Must be entered before CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    of_torch: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = of_torch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    of_torch.fill_uninitialized_memory = False
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        of_torch.fill_uninitialized_memory = fills


def train(options: Options, shape: Shape, note: Callable[[str], None]) -> tuple[Result, ByteGpt, torch.optim.Optimizer]:
    """Trains from scratch; calls ``note`` after each step. Ordinary PyTorch: nothing here knows of tierpage."""
    data = batches(corpus(), options.steps, options.batch, shape.context, options.seed)
    with torch.device(options.device):
        model = ByteGpt(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    result = Result()
    for batch in data:
        start = time.perf_counter()
        tokens = batch.to(options.device)
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = float(loss.detach())
        result.losses.append(value.hex())
        result.seconds.append(time.perf_counter() - start)
        note(f"loss {value:.3f}")
    return result, model, optimizer


@torch.no_grad()
def hash_parameters(model: torch.nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter, read piece by piece."""
    hashes = {}
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256()
        flat = parameter.detach().view(-1)
        for start in range(0, flat.numel(), _HASH_CHUNK):
            piece = flat[start : start + _HASH_CHUNK].clone().cpu()
            digest.update(ctypes.string_at(piece.data_ptr(), piece.nbytes))  # not numpy(): it may not be installed
        hashes[name] = digest.hexdigest()
    return hashes


def state_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, gradients and optimizer states as they are."""
    total = sum(parameter.nbytes * (2 if parameter.grad is not None else 1) for parameter in model.parameters())
    for state in optimizer.state.values():
        total += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    return total


def child_main() -> int:
    """The plain run: options on stdin, one JSON line per step and the result as the last line on stdout."""
    request = json.loads(sys.stdin.read())
    options, shape = Options(**request["options"]), Shape(**request["shape"])

    def note(text: str) -> None:
        print(json.dumps({"note": text}), flush=True)

    with deterministic(options.seed):
        result, model, _ = train(options, shape, note)
        result.hashes = hash_parameters(model)
    print(json.dumps({"result": asdict(result)}), flush=True)
    return 0


def run_plain(options: Options, shape: Shape) -> Result:
    """Runs :func:`child_main` in a child process. Raises TierpageError with its last words where it fails."""
    request = json.dumps({"options": asdict(options), "shape": asdict(shape)})
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-c", "import sys; from tierpage.demo import child_main; sys.exit(child_main())"]
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors, progress("plain", options.steps) as advance:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(request)
            child.stdin.close()
            for line in child.stdout:
                answer = json.loads(line)
                if "note" in answer:
                    advance(answer["note"])
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if code or "result" not in answer:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise tierpage.TierpageError(f"the plain run in a child process failed with code {code}: {last}")
    return Result(**answer["result"])


def plain_fits(options: Options, shape: Shape) -> str | None:
    """Why the plain run would not fit into this machine; None if it fits."""
    needed = int(shape.state_bytes() * 1.15) + 512 * MIB
    if options.device == "cpu":
        free, what = system.memory().available, "RAM"
    else:
        free, what = torch.cuda.mem_get_info(torch.device(options.device))[0], "VRAM"
    if needed <= free:
        return None
    return f"a plain run needs about {format_bytes(needed)}, {format_bytes(free)} of {what} are free"


def choose_directory(needed: int) -> str:
    """A directory on a disk with ``needed`` bytes free: the temporary folder, the home's cache, or the current one."""
    candidates = [
        os.environ.get("TMPDIR", ""),
        tempfile.gettempdir(),
        "/var/tmp",
        os.path.expanduser("~/.cache"),
        os.getcwd(),
    ]
    for path in filter(os.path.isdir, candidates):
        mount = system.mount_of(path)
        on_disk = mount is None or mount.kind not in system.MEMORY_FILE_SYSTEMS
        if on_disk and os.access(path, os.W_OK) and system.free_bytes(path)[0] > needed:
            return path
    raise StorageError(f"no directory on a disk with {format_bytes(needed)} free was found: give --nvme-path")


def settings_for(options: Options, shape: Shape) -> dict[str, Any]:
    """The arguments of ``tierpage.enable``: a quarter of the states in each fast tier, the rest on disk."""
    states = shape.state_bytes()
    quarter = states // 4 // MIB * MIB
    nvme_budget = states + states // 2 + 64 * MIB
    return {
        "nvme_path": options.nvme_path or choose_directory(nvme_budget + nvme_budget // 10),
        "device": options.device,
        "device_budget": options.device_budget or quarter,
        "host_budget": options.host_budget or quarter,
        "nvme_budget": nvme_budget,
    }


def run_paged(options: Options, shape: Shape) -> tuple[Result, dict[str, Any]]:
    """The same run with tierpage on. Also returns statistics, sizes and the text that the model wrote."""
    with deterministic(options.seed), tierpage.enable(**settings_for(options, shape)) as pager:
        with progress("paged", options.steps) as advance:
            result, model, optimizer = train(options, shape, advance)
        facts: dict[str, Any] = {
            "stats": tierpage.memory_stats(),
            "states": state_bytes(model, optimizer),
            "config": pager.config,
        }
        result.hashes = hash_parameters(model)
        optimizer.zero_grad()
        del optimizer
        facts["text"] = write_text(model, options.device, PROMPT, options.text_bytes, options.seed)
        if options.trace:
            tierpage.export_trace(options.trace)
        del model
    return result, facts


def compare(paged: Result, plain: Result) -> list[str]:
    """What differs between two runs, one line each; empty where every bit is equal."""
    found = []
    for number, (left, right) in enumerate(zip(paged.losses, plain.losses, strict=False), start=1):
        if left != right:
            found.append(f"loss of step {number}: paged {float.fromhex(left)!r}, plain {float.fromhex(right)!r}")
    if len(paged.losses) != len(plain.losses):
        found.append(f"steps: paged {len(paged.losses)}, plain {len(plain.losses)}")
    for name in sorted(paged.hashes.keys() | plain.hashes.keys()):
        if paged.hashes.get(name) != plain.hashes.get(name):
            found.append(f"parameter {name}: bytes differ")
    return found


def report(paged: Result, plain: Result | None, facts: dict[str, Any]) -> list[str]:
    """The table: tiers, links, faults, stalls, step times."""
    stats, config, states = facts["stats"], facts["config"], facts["states"]
    rows = [("tier", "budget", "peak in use")]
    for tier in TIERS:
        budget = getattr(config, f"{tier}_budget")
        rows.append((tier, format_bytes(budget), format_bytes(stats.get(f"resident_bytes.{tier}.peak", 0))))
    lines = format_table(rows)
    lines += [
        "",
        *format_table([("link", "bytes moved"), *((label, format_bytes(stats.get(name, 0))) for label, name in LINKS)]),
    ]
    together = config.device_budget + config.host_budget
    lines += [
        "",
        f"parameters + gradients + AdamW states: {format_bytes(states)} = {states / config.device_budget:.2f} x device budget, "
        f"{states / together:.2f} x device and RAM budgets together",
        f"faults {stats.get('faults.count', 0)}, stalled {stats.get('stall_seconds.total', 0.0):.2f} s",
        f"step time: paged {paged.step_seconds():.3f} s"
        + (
            f", plain {plain.step_seconds():.3f} s ({paged.step_seconds() / plain.step_seconds():.2f} x)"
            if plain
            else ""
        ),
        f"loss: {float.fromhex(paged.losses[0]):.3f} -> {float.fromhex(paged.losses[-1]):.3f} in {len(paged.losses)} steps",
    ]
    return lines


def run(options: Options) -> int:
    """The whole demo. Returns 0 where every bit is equal (or no plain run fits, which it says), else 1."""
    shape = shape_for(options.state_bytes())
    print(
        f"A byte-level GPT with {shape.parameters() / 1e6:.1f} million parameters ({shape.layers} layers, width {shape.width}) learns the "
        f"sources of Python's standard library on {options.device}, {options.steps} steps."
    )
    problem = plain_fits(options, shape)
    plain = None if problem else run_plain(options, shape)
    paged, facts = run_paged(options, shape)
    with contextlib.suppress(UnicodeError):
        print("\nIt writes: " + (PROMPT + facts["text"]).decode("utf-8", "replace").encode("unicode_escape").decode())
    print("\n" + "\n".join(report(paged, plain, facts)) + "\n")
    if facts["states"] < 4 * facts["config"].device_budget:
        print("Note: the states are less than 4 times the device budget; lower --device-budget or raise --size.")
    if plain is None:
        print(f"NOT COMPARED: {problem}.")
        return 0
    wrong = compare(paged, plain)
    for line in wrong[:20]:
        print(f"DIFFERENT: {line}")
    if wrong:
        print(f"DIFFERENT: {len(wrong)} of {len(plain.losses)} losses and {len(plain.hashes)} parameters.")
        return 1
    print(
        f"EQUAL: all {len(plain.losses)} losses and all {len(plain.hashes)} parameters are the same bits as without tierpage."
    )
    return 0
