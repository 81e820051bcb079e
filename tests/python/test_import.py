"""Importing: cheap, no CUDA, nothing changed in torch, and a clear message where the parts do not match."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

import tierpage
from tierpage import native, touching, trace


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_cheap_and_starts_no_cuda():
    program = (
        "import time, torch; t = time.perf_counter(); before = dict(torch.Tensor.__dict__); import tierpage; "
        "print(time.perf_counter() - t, torch.cuda.is_initialized(), before == dict(torch.Tensor.__dict__), tierpage.is_enabled())"
    )
    answers = [run(program).split() for _ in range(3)]
    assert min(float(answer[0]) for answer in answers) < 0.2
    assert answers[0][1:] == ["False", "True", "False"]


def test_public_names_exist():
    assert all(hasattr(tierpage, name) for name in tierpage.__all__)
    assert callable(tierpage.config)
    assert importlib.util.find_spec("tierpage.config") is None  # one name, one thing


def test_what_few_programs_use_is_imported_late():
    late = "import sys, tierpage; print(sorted(n for n in sys.modules if n.startswith(('tierpage._checkpoint', 'tierpage._doctor', 'tierpage.transformers', 'transformers'))))"
    assert run(late) == "[]"
    assert run("import tierpage; print(tierpage.load.__module__, tierpage.save.__module__)").split() == [
        "tierpage._checkpoint.loading",
        "tierpage._checkpoint.saving",
    ]


@pytest.mark.parametrize(
    ("libraries", "installed", "expected"),
    [
        ({}, (2, 13), ["no torch at all", f'pip install "{native.TORCH_REQUIREMENT}"', "Or build tierpage"]),
        ({(2, 11): None, (2, 12): None}, (2, 13), ["2.11, 2.12", 'pip install "torch==2.12.*"', "Or build tierpage"]),
        ({(2, 11): None, (2, 13): None}, (2, 14), ["2.11, 2.13", "torch==2.13.*", "and that torch is newer"]),
        ({(2, 11): None, (2, 13): None}, (3, 0), ["2.11, 2.13", "torch==2.13.*", "and that torch is newer"]),
        ({(2, 11): None, (2, 13): None}, (2, 10), ["2.11, 2.13", "torch==2.13.*", "and that torch is older"]),
    ],
)
def test_mismatch_names_torch_and_the_pip_line(monkeypatch, libraries, installed, expected):
    monkeypatch.setattr(native, "find_module", lambda: "x")
    monkeypatch.setattr(native, "find_libraries", lambda: libraries)
    monkeypatch.setattr(native, "torch_minor", lambda: installed)
    with pytest.raises(ImportError) as caught:
        native.check()
    for text in (*expected, torch.__version__):
        assert text in str(caught.value)
    assert ("Or build" in str(caught.value)) == (installed == (2, 13))  # what may not compile is no remedy


def test_missing_module_names_python(monkeypatch):
    monkeypatch.setattr(native, "find_module", lambda: None)
    with pytest.raises(ImportError, match=rf"Python {sys.version_info.major}\.{sys.version_info.minor}"):
        native.check()


def test_torch_minor():
    assert native.torch_minor("2.13.0+cpu") == native.torch_minor("2.13.0a0+git1") == (2, 13)


def test_touching_wraps_and_restores():
    touched, views = [], []

    class Library:
        storage_address = staticmethod(lambda storage: 4096)
        touch = staticmethod(touched.append)
        view = staticmethod(lambda address, change: views.append(change))
        watch_capsule = staticmethod(lambda address, capsule: views.append(capsule))

    before = dict(torch.Tensor.__dict__), dict(torch.UntypedStorage.__dict__)
    wrappers = touching.Wrappers(Library, lambda address: address == 4096)
    tensor = torch.arange(6.0)
    wrappers.install()
    wrappers.install()
    try:
        for call in (
            tensor.data_ptr,
            tensor.numpy,
            tensor.tolist,
            lambda: torch.from_dlpack(tensor),
            tensor.untyped_storage().data_ptr,
        ):
            touched.clear()
            call()
            assert touched
        assert torch.eye(3).to_sparse().is_sparse
        views.clear()
        array = tensor.numpy()
        assert views == [1]
        del array
        assert views == [1, -1]
    finally:
        wrappers.remove()
    assert before == (dict(torch.Tensor.__dict__), dict(torch.UntypedStorage.__dict__))


def test_trace_rows_and_merge(tmp_path):
    events = [
        ("host_to_device", 2_000, 1_000, 4_000, 7),
        ("device_to_host", 2_500, 500, 4_000, 8),
        ("map", 3_000, 10, 64, 7),
    ]
    made = trace.build_trace(events, {"baseTimeNanoseconds": 1_000, "traceEvents": [{"ph": "X"}]})
    slices = [entry for entry in made["traceEvents"] if entry.get("ph") == "X" and "tid" in entry]
    assert [entry["ts"] for entry in slices] == [1.0, 1.5, 2.0]
    assert slices[0]["args"]["GB/s"] == 4.0
    assert len({entry["tid"] for entry in slices}) == 3
    for name in ("a.json", "b.json.gz"):
        trace.write_json(tmp_path / name, made)
        assert trace._read_trace(tmp_path / name) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json.gz"]
