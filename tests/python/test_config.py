"""Sizes, TIERPAGE_CONF, precedence, defaults and limits, on a fake machine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierpage import system
from tierpage.defaults import differences, resolve
from tierpage.errors import ConfigError
from tierpage.settings import SETTINGS, parse_environment, parse_request, setting_names
from tierpage.sizes import Rate, parse_size

GIB = 1024**3


def machine(*, gpus=0, available=16 * GIB, limit=32 * GIB, free=100 * GIB, ranks=1, kind="ext4", read_only=False):
    return SimpleNamespace(
        memory=lambda: system.Memory(32 * GIB, limit, available, "available RAM"),
        cuda_count=lambda: gpus,
        cuda_current=lambda: 0,
        cuda_memory=lambda index: (20 * GIB, 24 * GIB),
        disk=lambda path: (free, 2 * free),
        mount=lambda path: system.Mount("/", kind, "disk", "8:1", read_only),
        local_ranks=lambda: ranks,
    )


def config(environment=None, on=None, **arguments):
    return resolve(parse_request(arguments, environment), on or machine())


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (7, 7),
        ("7", 7),
        ("8GiB", 8 * GIB),
        ("8gib", 8 * GIB),
        ("8 GB", 8 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("1e3kB", 10**6),
        ("0B", 0),
    ],
)
def test_bytes(value, count):
    assert parse_size(value).of(999) == count


@pytest.mark.parametrize(("value", "fraction"), [(0.5, 0.5), ("0.5", 0.5), ("50%", 0.5), (1.0, 1.0), ("100 %", 1.0)])
def test_fractions(value, fraction):
    assert parse_size(value).of(1000) == 1000 * fraction


@pytest.mark.parametrize(
    "value",
    [
        -1,
        "-1GiB",
        "8G",
        "8Gb/s",
        "",
        "GiB",
        0.0,
        -0.5,
        1.5,
        float("nan"),
        float("inf"),
        True,
        None,
        [],
        "nan",
        "1e400GB",
        10**30,
        "0x10",
    ],
)
def test_bad_sizes_name_setting_and_value(value):
    with pytest.raises(ConfigError, match="device_budget") as caught:
        parse_size(value, "device_budget")
    assert repr(value)[:8] in str(caught.value) or str(value)[:8] in str(caught.value)


@given(st.text())
def test_any_text_is_a_size_or_a_config_error(text):
    try:
        size = parse_size(text)
    except ConfigError:
        return
    assert (size.count is None) != (size.fraction is None)


def test_environment_grammar():
    assert parse_environment(None) == {}
    assert parse_environment(" device_budget:8GiB , prefetch : off,") == {"device_budget": "8GiB", "prefetch": "off"}
    assert parse_environment("nvme_path:/a:b") == {"nvme_path": "/a:b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device_budgt:8GiB", "device_budget"),
        ("device_budget", "colon"),
        ("prefetch:on,prefetch:off", "twice"),
        ("xyzzy:1", "Known keys"),
    ],
)
def test_environment_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_environment(text)


def test_precedence_and_origins():
    made = config("host_budget:2GiB,device_budget:1GiB", device_budget="3GiB")
    assert (made.device_budget, made.host_budget) == (3 * GIB, 2 * GIB)
    assert made.origins["device_budget"] == "argument"
    assert made.origins["host_budget"] == "TIERPAGE_CONF"
    assert made.origins["prefetch"] == "default"
    assert set(setting_names()) == set(SETTINGS) == set(made.origins) - {"device_index"}


def test_checks_and_storage_backend():
    made = config()
    assert (made.verify, made.storage_backend) == ("read", "auto")
    made = config("verify:off,storage_backend:direct")
    assert (made.verify, made.storage_backend) == ("off", "direct")
    assert made.origins["verify"] == "TIERPAGE_CONF"
    assert made.engine_options()["verify"] == "off"
    assert "storage_backend" not in made.engine_options()
    assert config("verify:off", verify="read").verify == "read"
    assert config("storage_backend:kvikio").storage_backend == "kvikio"


def test_environment_line_gives_the_same_settings(tmp_path):
    first = config(nvme_path=str(tmp_path), device_budget="3GiB", prefetch=False, device="cpu")
    again = config(first.environment())
    assert (again.nvme_path, again.device_budget, again.prefetch) == (
        first.nvme_path,
        first.device_budget,
        first.prefetch,
    )


def test_defaults_on_cpu(tmp_path):
    made = config(nvme_path=tmp_path)
    usable = 16 * GIB - int(1.6 * GIB)
    assert made.device == "cpu"
    assert made.device_budget == pytest.approx(usable / 2, rel=0.01)
    assert made.device_budget + made.host_budget == pytest.approx(usable, rel=0.01)
    assert made.nvme_budget == 50 * GIB
    assert config().nvme_budget == 0
    assert not made.notes


def test_defaults_on_cuda():
    made = config(on=machine(gpus=2))
    assert (made.device, made.device_index) == ("cuda", 0)
    assert made.device_budget == 20 * GIB - int(1.2 * GIB)
    assert config(on=machine(gpus=2), device_budget=0.5).device_budget == 12 * GIB


def test_local_ranks_share_ram_and_disk(tmp_path):
    one, four = config(on=machine(gpus=1), nvme_path=tmp_path), config(on=machine(gpus=1, ranks=4), nvme_path=tmp_path)
    assert four.host_budget == pytest.approx(one.host_budget / 4, rel=0.01)
    assert four.nvme_budget == pytest.approx(one.nvme_budget / 4, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "on", "message"),
    [
        ({"device_budget": "33GiB"}, {}, "33.0 GiB, more than the 32.0 GiB of RAM"),
        ({"device_budget": "25GiB"}, {"gpus": 1}, "more than the 24.0 GiB of VRAM"),
        ({"host_budget": "9GiB"}, {"limit": 8 * GIB}, "cgroup limit of 8.0 GiB"),
        ({"device_budget": 8}, {}, "minimum of 1 MiB"),
        ({"nvme_budget": "1GiB"}, {}, "nvme_path is not"),
        ({"device": "cuda"}, {}, "no usable CUDA device"),
        ({"device": "cuda:3"}, {"gpus": 1}, "does not exist"),
        ({"device": "tpu"}, {}, "not a device"),
        ({"device": "cuda:"}, {"gpus": 1}, "not a device"),
        ({"scope": "al"}, {}, "Did you mean 'all'"),
        ({"verify": "reads"}, {}, "Did you mean 'read'"),
        ({"verify": True}, {}, "not one of 'read', 'full', 'off'"),
        ({"storage_backend": "cufile"}, {}, "not one of 'auto', 'direct', 'kvikio'"),
        ({"storage_backend": "dirct"}, {}, "Did you mean 'direct'"),
        ({"policy": "min"}, {}, "not one of 'auto', 'clock'"),
        ({"paranoid": "maybe"}, {}, "not a switch"),
        ({"nvme_write_budget": "200GB"}, {}, 'give a size "/day"'),
        ({"nvme_write_budget": "200GB/month"}, {}, "not a rate"),
        ({"nvme_write_budget": "50%/day"}, {}, "in bytes"),
        ({"nvme_write_budget": 200}, {}, "not a rate"),
        ({"stall_report_seconds": -1}, {}, "not a time"),
        ({"stall_report_seconds": "soon"}, {}, "not a time"),
        ({"stall_report_seconds": float("nan")}, {}, "not a time"),
        ({"staging_slots": 0}, {}, "out of range"),
        ({"staging_slot_bytes": 5000}, {}, "multiple of 4096"),
        ({"granule_bytes": 5000}, {}, "power of two"),
        ({"min_paged_bytes": 0.5}, {}, "in bytes"),
        ({"list_run_fraction": 2.0}, {}, "fraction"),
        ({"devicebudget": 1}, {}, "Did you mean 'device_budget'"),
        ({"nvme_path": 7}, {}, "not a directory name"),
        ({"nvme_path": "/no/such/place"}, {}, "does not exist"),
        ({"nvme_path": ["/var/tmp", "/no/such/place"]}, {}, "/no/such/place' does not exist"),
        ({"nvme_path": []}, {}, "holds no directory"),
        ({"nvme_path": ["/var/tmp", ""]}, {}, "holds no directory"),
        ({"nvme_path": ["/var/tmp", "/var/tmp/"]}, {}, "twice"),
        ({"nvme_path": ["/var/tmp", 7]}, {}, "not a directory name"),
        ({}, {"available": GIB // 2}, "No default for device_budget"),
    ],
)
def test_bad_values(arguments, on, message):
    with pytest.raises(ConfigError, match=message):
        config(on=machine(**on), **arguments)


def test_bad_directories(tmp_path):
    (tmp_path / "file").touch()
    for path, on, message in (
        (tmp_path / "file", {}, "not a directory"),
        (tmp_path, {"kind": "tmpfs"}, "is RAM"),
        (tmp_path, {"read_only": True}, "read-only"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(on=machine(**on), nvme_path=path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert "network" in config(on=machine(kind="nfs4"), nvme_path=tmp_path).notes[0]


def test_write_budget(tmp_path):
    made = config(nvme_path=tmp_path, nvme_write_budget="200GB/day")
    assert made.nvme_write_budget == Rate(200 * 10**9, 86400)
    assert made.engine_options()["nvme_write_budget"] == (200 * 10**9, 86400)
    assert config(made.environment()).nvme_write_budget == made.nvme_write_budget
    assert config("nvme_write_budget:1GiB/hour").nvme_write_budget == Rate(GIB, 3600)
    assert config("nvme_write_budget:1GiB/hour", nvme_write_budget="none").nvme_write_budget is None
    assert config().engine_options()["nvme_write_budget"] is None
    asked = parse_request({"nvme_write_budget": "1GB/day"}, None)
    assert differences(resolve(asked, machine()), parse_request({"nvme_write_budget": "1000MB/day"}, None), asked) == []
    assert differences(resolve(asked, machine()), parse_request({"nvme_write_budget": "2GB/day"}, None), asked)


def test_several_drives(tmp_path, monkeypatch):
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        path.mkdir()
    both = (str(a), str(b))
    for made in (config(nvme_path=[a, b]), config(nvme_path=both), config(f"nvme_path:[{a}, {b}],prefetch:off")):
        assert made.nvme_path == both
        assert made.engine_options()["nvme_path"] == list(both)
        assert made.nvme_budget == 50 * GIB  # one drive behind both
        assert "1 file system" in made.notes[0]
    assert config(config(nvme_path=both).environment()).nvme_path == both
    assert config(nvme_path=[a]).nvme_path == str(a)
    assert config(nvme_path=a).engine_options()["nvme_path"] == [str(a)]
    assert config().engine_options()["nvme_path"] == []
    asked = parse_request({"nvme_path": both}, None)
    assert differences(resolve(asked, machine()), parse_request({"nvme_path": [a, b]}, None), asked) == []
    assert differences(resolve(asked, machine()), parse_request({"nvme_path": a}, None), asked)
    # Two drives of their own: each file may be as large as the fuller one allows.
    number = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: _on_drive(number(path, **more), str(path) == both[1]))
    on = machine()
    on.disk = lambda path: (10 * GIB if path == both[1] else 100 * GIB, 200 * GIB)
    made = config(on=on, nvme_path=both, nvme_budget=1.0)
    assert (made.nvme_budget, made.notes) == (20 * GIB, ())


def _on_drive(info, second):
    return SimpleNamespace(st_mode=info.st_mode, st_dev=info.st_dev + second, st_uid=info.st_uid)


def test_a_directory_of_another_user_needs_the_sticky_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(ConfigError, match=f"belongs to user {os.stat(tmp_path).st_uid}"):
        config(nvme_path=tmp_path)
    tmp_path.chmod(0o1777)
    assert config(nvme_path=tmp_path).nvme_path == str(tmp_path)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config(nvme_path=tmp_path).nvme_path == str(tmp_path)


def test_second_enable_compares_what_is_given(tmp_path):
    asked = parse_request({"nvme_path": tmp_path, "device_budget": "1GiB", "host_budget": 0.25}, None)
    made = resolve(asked, machine())
    for same in ({}, {"nvme_path": str(tmp_path)}, {"device_budget": GIB}, {"host_budget": 0.25}, {"device": "cpu"}):
        assert differences(made, parse_request(same, None), asked) == []
    assert "asked 5242880" in differences(made, parse_request({"device_budget": "5MiB"}, None), asked)[0]
    assert differences(made, parse_request({"paranoid": True}, None), asked)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = f"MemTotal: {32 * 1024**2} kB\nMemAvailable: {20 * 1024**2} kB\n"


def test_cgroup_v2_takes_the_tightest_parent(tmp_path):
    root = tree(tmp_path, {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{5 * GIB}\n",
        "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    })  # fmt: skip
    assert system.memory(root) == system.Memory(32 * GIB, 8 * GIB, 4 * GIB, "cgroup headroom")


def test_cgroup_v1_and_none(tmp_path):
    root = tree(tmp_path, {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/docker/x\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{6 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
    })  # fmt: skip
    assert system.memory(root).available == 5 * GIB
    (root / "proc/self/cgroup").write_text("")
    assert system.memory(root).available == 20 * GIB
