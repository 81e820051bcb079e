"""The choice of what reads and writes the spill file, on made-up machines; and the kvikio extension itself, in a process
that finds a stand-in for the CUDA driver."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tierpage
from tierpage import native, storage
from tierpage.errors import ConfigError
from tierpage.settings import Config

STAND_IN = Path(__file__).resolve().parent.parent / "stand_in_driver" / "libcuda.cpp"
RATES = {
    "problem": "", "extension_read": 6.0, "extension_write": 5.0, "through_memory_read": 5.5, "through_memory_write": 5.0,
}  # fmt: skip


def settings(**values) -> Config:
    given = {"device": "cuda", "nvme_path": "/data", "verify": "off", **values}
    return Config(device_index=0, device_budget=1 << 30, host_budget=1 << 30, nvme_budget=1 << 30, **given)


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine answers: the extension's problem, peer to peer's, and the rates."""

    def set_up(extension=None, peer_to_peer="", rates=RATES):
        module = SimpleNamespace(storage_peer_to_peer=lambda: peer_to_peer, compare_storage=lambda *_: dict(rates))
        monkeypatch.setattr(storage, "kvikio_problem", lambda: extension)
        monkeypatch.setattr(native, "engine_module", lambda: module)

    return set_up


def test_auto_takes_the_drives_own_way_only_where_it_is_proved_and_faster(machine):
    machine()
    chosen = storage.choose(settings())
    assert (chosen.name, chosen.to_device) == ("kvikio", True)
    assert "6.00 GB/s read" in chosen.reason
    assert chosen.engine_options() == {"storage": "extension_to_device"}
    machine(rates={**RATES, "extension_read": 2.0})
    chosen = storage.choose(settings())
    assert (chosen.name, chosen.to_device) == ("direct", False)
    assert "faster" in chosen.reason
    machine(rates={**RATES, "problem": "EIO"})
    assert storage.choose(settings()).name == "direct"
    assert storage.choose(settings()).engine_options() == {"storage": "direct"}


@pytest.mark.parametrize(
    ("answers", "values", "reason"),
    [
        ({"extension": "libkvikio is not installed"}, {}, "libkvikio is not installed"),
        ({"peer_to_peer": "no nvidia_fs"}, {}, "no nvidia_fs"),
        ({}, {"verify": "read"}, "verify='read'"),
        ({}, {"device": "cpu"}, "no device memory"),
        ({}, {"storage_backend": "direct"}, "asked for"),
    ],
)
def test_direct_says_why(machine, answers, values, reason):
    machine(**answers)
    chosen = storage.choose(settings(**values))
    assert chosen.name == "direct"
    assert reason in chosen.reason


def test_an_explicit_choice_goes_through_ram_where_it_must(machine):
    machine(peer_to_peer="no nvidia_fs")
    chosen = storage.choose(settings(storage_backend="kvikio"))
    assert (chosen.name, chosen.to_device) == ("kvikio", False)
    assert "no nvidia_fs" in chosen.reason
    assert chosen.engine_options() == {"storage": "extension"}
    machine(rates={**RATES, "problem": "EIO"})
    assert not storage.choose(settings(storage_backend="kvikio")).to_device


def test_an_explicit_choice_that_cannot_work_is_an_error(machine):
    machine(extension="libkvikio is not installed. Run: pip")
    with pytest.raises(
        ConfigError, match=r"storage_backend='kvikio' cannot work here: libkvikio is not installed\. Run: pip"
    ):
        storage.choose(settings(storage_backend="kvikio"))
    assert storage.choose(settings(storage_backend="kvikio", nvme_path=None)).name == "none"


@pytest.mark.parametrize("present", ["nothing", "extension", "wrong release", "right release"])
def test_what_is_missing_is_named_with_its_remedy(monkeypatch, tmp_path, present):
    if present != "nothing":
        (tmp_path / "_kvikio_26_10.so").write_text("not a library")
    if "release" in present:
        for name in ("libkvikio", "rapids_logger"):
            (tmp_path / name / "lib64").mkdir(parents=True)
            (tmp_path / name / "lib64" / f"{name if name[0] == 'l' else 'lib' + name}.so").write_text("not a library")
        (tmp_path / "libkvikio" / "VERSION").write_text("26.10.00" if present == "right release" else "26.08.00")
    monkeypatch.setattr(native, "package_folders", lambda: [tmp_path])
    found = importlib.util.find_spec

    def find_spec(name, package=None):
        if name not in ("libkvikio", "rapids_logger", "nvidia"):
            return found(name, package)
        folder = tmp_path / name
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if folder.is_dir() else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    expected = {
        "nothing": "no kvikio extension",
        "extension": "libkvikio and rapids_logger is not installed",
        "wrong release": "built for libkvikio 26.10, but 26.08 is installed",
        "right release": "does not load",
    }
    problem = storage.kvikio_problem.__wrapped__()
    assert expected[present] in problem
    assert "Run: pip install" in problem


def test_in_force_says_what_was_chosen_and_why(options, tmp_path):
    with tierpage.enable(**options) as pager:
        assert pager.config.in_force["storage_backend"] == "none"
    budgets = {"nvme_path": str(tmp_path), "nvme_budget": "64MiB"}
    with tierpage.enable(**{**options, **budgets}) as pager:
        assert pager.config.in_force["storage_backend"] == "direct"
        assert pager.config.in_force["storage_reason"]
        assert "kvikio" not in pager.config.in_force["storage"]


# ---- the extension itself ----

PROGRAM = """
import logging, sys, torch, tierpage
logging.basicConfig(level=logging.INFO)
with tierpage.enable(sys.argv[1], device="cpu", device_budget="8MiB", host_budget="20MiB", nvme_budget="128MiB",
                     staging_slots=4, staging_slot_bytes="4MiB", storage_backend="kvikio", verify=sys.argv[2]) as pager:
    tensors = [torch.full((1 << 20,), float(i)) for i in range(16)]
    for _ in range(2):
        for i, tensor in enumerate(tensors):
            assert bool((tensor == i).all()), i
    stats = tierpage.memory_stats()
    print(pager.config.in_force["storage"])
    print(pager.config.in_force["storage_backend"], stats["fetch_bytes.nvme_to_device"] + stats["fetch_bytes.nvme_to_host"] > 0)
"""


def run_kvikio(program: str, *arguments: str, library_path: Path | None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if library_path is not None:
        environment["LD_LIBRARY_PATH"] = f"{library_path}:{environment.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def extension() -> None:
    """Skips, with the reason, where there is nothing to test; a machine that must not skip says so."""
    reason = None
    if storage.find_extension() is None:
        reason = "tierpage was built without libkvikio"
    elif importlib.util.find_spec("libkvikio") is None:
        reason = "libkvikio is not installed"
    if reason is not None and os.environ.get("TIERPAGE_TEST_KVIKIO") == "1":
        pytest.fail(f"TIERPAGE_TEST_KVIKIO=1, but {reason}")
    if reason is not None:
        pytest.skip(reason)


def has_driver() -> bool:
    """Whether a process that is left alone finds a CUDA driver."""
    return run_kvikio("import ctypes; ctypes.CDLL('libcuda.so.1')", library_path=None).returncode == 0


@pytest.fixture(scope="module")
def stand_in(extension, tmp_path_factory) -> Path | None:
    """A folder with the stand-in for libcuda.so.1; ``None`` where there is a real one."""
    if has_driver():
        return None
    compiler = next(filter(None, map(shutil.which, ("c++", "g++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler for the stand-in of the CUDA driver")
    folder = tmp_path_factory.mktemp("stand_in")
    library = folder / "libcuda.so.1"
    options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run([compiler, str(STAND_IN), *options], check=True)
    return folder


@pytest.mark.parametrize("verify", ["read", "off"])
def test_pages_come_back_through_kvikio(stand_in, tmp_path, verify):
    done = run_kvikio(PROGRAM, str(tmp_path), verify, library_path=stand_in)
    assert done.returncode == 0, done.stderr
    assert "kvikio 26.10" in done.stdout
    assert "kvikio True" in done.stdout
    assert "storage_backend='kvikio': kvikio, because it was asked for" in done.stderr


def test_without_a_driver_the_error_names_it(extension, tmp_path):
    if has_driver():
        pytest.skip("this machine has a CUDA driver")
    done = run_kvikio(PROGRAM, str(tmp_path), "read", library_path=None)
    assert done.returncode == 1
    assert "ConfigError: storage_backend='kvikio' cannot work here" in done.stderr
    assert "libcuda.so.1 cannot be opened" in done.stderr


def test_the_comparison_runs_through_python(stand_in, tmp_path):
    program = (
        "import sys, torch, tierpage; from tierpage import native, storage; assert storage.kvikio_problem() is None;"
        "print(native.engine_module().compare_storage('cpu', 0, sys.argv[1], False))"
    )
    done = run_kvikio(program, str(tmp_path), library_path=stand_in)
    assert done.returncode == 0, done.stderr
    rates = eval(done.stdout)
    assert rates.pop("problem") == ""
    assert len(rates) == 4
    assert all(rate > 0 for rate in rates.values())
