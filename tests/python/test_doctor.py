"""The doctor's rows on a fake machine, its three forms of output and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import tierpage
from tierpage import page_code, system
from tierpage._doctor import checks, report
from tierpage._doctor.machine import DoctorMachine

GIB = 1024**3
GPU = {
    "available": True, "name": "cuda:0 GPU", "granule_bytes": 2 << 20, "driver_version": "13.0",
    "compute_capability": "9.0", "virtual_memory_management": True, "host_mapping": True, "copy_engines": 3,
    "rdma_capable": True,
}  # fmt: skip


class FakeMachine(DoctorMachine):
    """A machine on which all is well; keyword arguments replace what a method returns."""

    def __init__(self, **answers):
        self.environment = answers.pop("environment", {})
        self.path = "/data"
        self.paths = [self.path]
        self.answers = {
            "version": tierpage.__version__,
            "torch_version": "2.13.0",
            "torch_has_cuda": True,
            "native_problem": None,
            "guard_problem": None,
            "probe_device": dict(GPU),
            "measure_links": {"host_to_device": 50.0, "disk_read": 6.0, "disk_write": 5.0},
            "memory": system.Memory(64 * GIB, 64 * GIB, 32 * GIB, "available RAM"),
            "memlock_limit": None,
            "disk": (500 * GIB, 900 * GIB),
            "mount": system.Mount("/data", "ext4", "/dev/nvme0n1p1", "259:1", False),
            "directory_problem": None,
            "direct_io_problem": None,
            "io_uring_problem": None,
            "library": False,
            "read_link": "",
            "kvikio_problem": None,
            "peer_to_peer_problem": "no nvidia_fs",
            "page_code_problem": "",
            "read": "always [madvise] never",
            **answers,
        }

    def __getattribute__(self, name):
        answers = object.__getattribute__(self, "__dict__").get("answers", {})
        if name in answers:
            return lambda *_: answers[name]
        return object.__getattribute__(self, name)


def row(rows, name):
    return next(entry for entry in rows if entry.name == name)


def test_all_is_well():
    rows = checks.examine(FakeMachine())
    assert {entry.state for entry in rows} == {report.OK}
    assert report.exit_code(rows) == 0
    assert row(rows, "disk read").value == "6.00 GB/s"


@pytest.mark.parametrize(
    ("answers", "name", "state"),
    [
        ({"native_problem": "built for torch 2.11\nRun: pip install x"}, "build", "FAIL"),
        ({"probe_device": {"available": False, "reason": "no libcuda"}}, "device", "WARN"),
        ({"probe_device": {**GPU, "virtual_memory_management": False}}, "virtual memory", "FAIL"),
        (
            {"probe_device": {"available": False, "reason": "cuda:0 GPU has no virtual memory management"}},
            "virtual memory",
            "FAIL",
        ),
        ({"probe_device": {**GPU, "copy_engines": 1}}, "copy engines", "WARN"),
        ({"memory": system.Memory(64 * GIB, GIB, GIB, "cgroup headroom")}, "RAM", "WARN"),
        ({"memlock_limit": 8 << 20}, "memlock", "WARN"),
        ({"read": "always madvise [never]"}, "huge pages", "WARN"),
        ({"directory_problem": "nvme_path='/data' does not exist: create it"}, "directory", "FAIL"),
        ({"disk": (GIB, 2 * GIB)}, "directory", "WARN"),
        ({"mount": system.Mount("/data", "tmpfs", "tmpfs", "0:1", False)}, "file system", "FAIL"),
        ({"mount": system.Mount("/data", "nfs4", "server", "0:1", False)}, "file system", "WARN"),
        ({"mount": system.Mount("/", "overlay", "overlay", "0:1", False)}, "file system", "WARN"),
        ({"guard_problem": "CUPTI has another user"}, "launch guard", "WARN"),
        ({"direct_io_problem": "Invalid argument (errno 22)"}, "direct I/O", "WARN"),
        ({"environment": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}}, "conflicts", "WARN"),
        ({"environment": {"TIERPAGE_CONF": "devicebudget:1"}}, "settings", "FAIL"),
        ({"measure_links": {"disk_read": 0.1}}, "disk read", "WARN"),
        ({"page_code_problem": "NVRTC is not there"}, "page code", "WARN"),
        ({"measure_links": {"code_error": "cuModuleLoadData: out of memory"}}, "page encode", "WARN"),
    ],
)
def test_bad_rows_name_cause_and_remedy(answers, name, state):
    rows = checks.examine(FakeMachine(**answers))
    found = row(rows, name)
    assert found.state == state
    assert found.cause
    assert found.remedy
    assert report.exit_code(rows) == {"WARN": 1, "FAIL": 2}[state]


def test_what_the_driver_says_is_shown():
    rows = checks.examine(FakeMachine(library=True))
    assert row(rows, "device").value == "cuda:0 GPU, compute capability 9.0, driver for CUDA 13.0"
    assert row(rows, "copy engines").value == "3"
    assert row(rows, "host mapping").value.startswith("supported: what needs more than device_budget")
    without = checks.examine(FakeMachine(probe_device={**GPU, "host_mapping": False}))
    assert (row(without, "host mapping").state, report.exit_code(without)) == ("OK", 0)  # a limit, and no fault
    assert row(without, "host mapping").value.endswith("fails")
    assert row(rows, "cuFile").value == "library found, device memory can be reached by other devices (not needed)"
    assert not [entry for entry in rows if "not probed" in entry.value]
    bare = checks.examine(FakeMachine(probe_device={"available": True, "name": "GPU"}))
    assert [entry.name for entry in bare if entry.value == "not probed"] == ["host mapping", "copy engines"]


def test_the_page_code_is_a_matter_of_the_gpu():
    rows = checks.examine(FakeMachine(measure_links={"page_encode": 550.0, "page_decode": 1970.0}))
    assert row(rows, "page code").value.startswith("works")
    assert row(rows, "page encode").value == "550.00 GB/s"
    assert row(rows, "page decode").value == "1970.00 GB/s"
    without = FakeMachine(probe_device={"available": False, "reason": "no libcuda"}, page_code_problem="not asked")
    assert (row(checks.examine(without), "page code").state) == "OK"
    assert "off by default" in row(checks.examine(without), "page code").value


def test_why_the_page_code_cannot_be_compiled_is_said(monkeypatch):
    def refused(index):
        raise RuntimeError(f"no compiler for cuda:{index}\nand more")

    monkeypatch.setattr(page_code, "compiled", refused)
    assert DoctorMachine(None, {}).page_code_problem() == "no compiler for cuda:0"
    monkeypatch.setattr(page_code, "compiled", lambda index: b"kernels")
    assert DoctorMachine(None, {}).page_code_problem() == ""


def test_missing_gpu_is_fine_with_a_cpu_build_of_torch():
    rows = checks.examine(FakeMachine(torch_has_cuda=False, probe_device={"available": False, "reason": "no libcuda"}))
    assert report.exit_code(rows) == 0


def test_a_failing_check_or_measurement_is_a_row():
    rows = checks.examine(FakeMachine(memory=None, measure_links=None))
    assert row(rows, "memory").cause.startswith("the check failed: AttributeError")
    assert row(rows, "links").state == "WARN"


def test_text_and_json_say_the_same():
    rows = checks.examine(FakeMachine(disk=(GIB, GIB)))
    text, data = report.as_text(rows, "a:b"), json.loads(report.as_json(rows, "a:b"))
    assert text.splitlines()[-1] == "TIERPAGE_CONF=a:b"
    assert [entry["name"] for entry in data["rows"]] == [entry.name for entry in rows]
    assert set(data["rows"][0]) == {"name", "state", "value", "cause", "remedy"}
    assert (data["exit_code"], data["TIERPAGE_CONF"]) == (1, "a:b")
    assert all(entry.name in text and entry.value in text for entry in rows)


def test_several_directories_have_their_own_rows(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    for machine in (DoctorMachine(paths, {}), DoctorMachine(None, {"TIERPAGE_CONF": f"nvme_path:[{','.join(paths)}]"})):
        rows = checks.examine(machine, measure=False)
        directories = [entry.value.partition(": ")[0] for entry in rows if entry.name == "directory"]
        assert directories == paths
        assert len(rows) == len(checks.CHECKS) + len(checks.DIRECTORY_CHECKS)
        assert f"nvme_path:[{','.join(paths)}]" in machine.configuration()
    broken = checks.examine(DoctorMachine([paths[0], "/no/such/place"], {}), measure=False)
    assert [entry.state for entry in broken if entry.name == "directory"] == ["OK", "FAIL"]


def test_this_machine(tmp_path):
    machine = DoctorMachine(str(tmp_path), environment={})
    rows = checks.examine(machine, measure=False)
    assert len(rows) == len(checks.CHECKS)
    assert not [entry for entry in rows if entry.cause.startswith("the check failed")]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("directories", [0, 1, 2])
def test_links_of_this_machine_are_measured(tmp_path, directories):
    """The real program, with the native part: what a fake machine answers says nothing about it."""
    paths = [tmp_path / str(number) for number in range(directories)]
    for path in paths:
        path.mkdir()
    command = [sys.executable, "-m", "tierpage", "doctor", "--json", *map(str, paths)]
    environment = {name: value for name, value in os.environ.items() if name != "TIERPAGE_CONF"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    rows = {entry["name"]: entry for entry in json.loads(done.stdout)["rows"]}
    assert "links" not in rows, rows["links"]
    expected = {"RAM to RAM", "page encode", "page decode"} | ({"disk read", "disk write"} if paths else set())
    assert expected <= set(rows)
    assert all(rows[name]["value"].endswith(" GB/s") for name in expected)
    assert [list(path.iterdir()) for path in paths] == [[]] * directories


def test_storage_says_what_is_used_and_why_not_kvikio():
    value = row(checks.examine(FakeMachine(), measure=False), "storage").value
    assert "direct I/O" in value
    assert "no nvidia_fs" in value
    assert "by themselves" in row(checks.examine(FakeMachine(peer_to_peer_problem="")), "storage").value
    missing = row(checks.examine(FakeMachine(kvikio_problem="libkvikio is not installed")), "storage")
    assert (missing.state, "libkvikio is not installed" in missing.value) == (report.OK, True)


def test_storage_fails_only_for_an_explicit_choice_that_cannot_work():
    machine = FakeMachine(
        kvikio_problem="libkvikio is not installed", environment={"TIERPAGE_CONF": "storage_backend:kvikio"}
    )
    failed = row(checks.examine(machine, measure=False), "storage")
    assert (failed.state, failed.cause) == (report.FAIL, "libkvikio is not installed")
    assert "storage_backend:direct" in failed.remedy
