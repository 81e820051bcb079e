"""What ``tierpage doctor`` checks, and the remedy for what is wrong. Works without a GPU and without a match between
tierpage and torch. Each check is a function of a DoctorMachine that returns a Row; nothing here prints."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

from tierpage import system
from tierpage._doctor.machine import DoctorMachine
from tierpage._doctor.report import FAIL, OK, WARN, Row
from tierpage.system import format_bytes

Check = Callable[[DoctorMachine], Row]


def check_build(machine: DoctorMachine) -> Row:
    problem = machine.native_problem()
    if problem is None:
        return Row("build", OK, f"tierpage {machine.version()} for torch {machine.torch_version()}")
    first, _, rest = problem.partition("\n")
    return Row("build", FAIL, f"torch {machine.torch_version()}", first, rest.replace("\n", " "))


def check_python(machine: DoctorMachine) -> Row:
    libc = " ".join(platform.libc_ver()).strip() or "unknown C library"
    return Row("python", OK, f"{platform.python_version()}, {libc}, {platform.machine()}")


def check_device(machine: DoctorMachine) -> Row:
    facts = machine.probe_device("cuda", 0)
    if facts.get("available"):
        known = [("compute capability", "compute_capability"), ("driver for CUDA", "driver_version")]
        words = [f"{title} {facts[name]}" for title, name in known if facts.get(name)]
        return Row("device", OK, ", ".join([str(facts.get("name", "CUDA device 0")), *words]))
    reason = str(facts.get("reason", "unknown"))
    if not machine.torch_has_cuda():
        return Row("device", OK, "no GPU wanted (torch is a CPU build): CPU tensors are paged between RAM and NVMe")
    return Row(
        "device", WARN, "no CUDA device: CPU tensors are paged between RAM and NVMe", reason,
        "not needed for the CPU; for a GPU install its driver and a torch built for CUDA",
    )  # fmt: skip


def check_vmm(machine: DoctorMachine) -> Row:
    facts = machine.probe_device("cuda", 0)
    lacking = "no virtual memory management" in str(facts.get("reason", ""))  # a device, but not one that can be used
    if not facts.get("available") and not lacking:
        return Row("virtual memory", OK, "not needed without a GPU")
    if not lacking and facts.get("virtual_memory_management", True):
        return Row("virtual memory", OK, f"supported, granularity {format_bytes(int(facts.get('granule_bytes', 0)))}")
    return Row(
        "virtual memory", FAIL, "not supported", "the device or its virtual GPU profile lacks virtual memory management",
        "use a GPU of compute capability 7.0 or newer, or a vGPU profile with unified memory enabled",
    )  # fmt: skip


def check_host_mapping(machine: DoctorMachine) -> Row:
    facts = machine.probe_device("cuda", 0)
    if not facts.get("available"):
        return Row("host mapping", OK, "not needed without a GPU")
    if "host_mapping" not in facts:
        return Row("host mapping", OK, "not probed")
    return Row(
        "host mapping",
        OK,
        "supported: what needs more than device_budget at once is used in RAM"
        if facts["host_mapping"]
        else "not supported: what needs more than device_budget at once fails",
    )


def check_copy_engines(machine: DoctorMachine) -> Row:
    facts = machine.probe_device("cuda", 0)
    if not facts.get("available"):
        return Row("copy engines", OK, "not needed without a GPU")
    count = int(facts.get("copy_engines", 0))
    if count >= 2 or "copy_engines" not in facts:
        return Row("copy engines", OK, str(count) if count else "not probed")
    return Row(
        "copy engines", WARN, str(count), "the device copies in one direction at a time",
        "nothing; plan with half the rate",
    )  # fmt: skip


def check_memory(machine: DoctorMachine) -> Row:
    memory = machine.memory()
    value = f"{format_bytes(memory.available)} usable ({memory.source}) of {format_bytes(memory.total)}"
    if memory.limit < memory.total:
        value += f", cgroup limit {format_bytes(memory.limit)}"
    if memory.available >= 2 * 1024**3:
        return Row("RAM", OK, value)
    return Row(
        "RAM",
        WARN,
        value,
        "other programs or the container limit",
        "stop programs, or raise the container's memory limit",
    )


def check_memlock(machine: DoctorMachine) -> Row:
    limit = machine.memlock_limit()
    value = "unlimited" if limit is None else format_bytes(limit)
    if limit is None or limit >= 1024**3 or not machine.probe_device("cuda", 0).get("available"):
        return Row("memlock", OK, value)
    return Row(
        "memlock", WARN, value, "ulimit -l is low; the CUDA driver usually locks memory past it, other ways do not",
        "ulimit -l unlimited, or docker run --ulimit memlock=-1",
    )  # fmt: skip


def check_huge_pages(machine: DoctorMachine) -> Row:
    text = machine.read("/sys/kernel/mm/transparent_hugepage/enabled").strip()
    active = text[text.find("[") + 1 : text.find("]")] if "[" in text else ""
    if active in ("always", "madvise"):
        return Row("huge pages", OK, active)
    return Row(
        "huge pages", WARN, active or "unknown", "transparent huge pages are off; disk reads into small pages are slower",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)",
    )  # fmt: skip


def check_map_count(machine: DoctorMachine) -> Row:
    count = machine.read("/proc/sys/vm/max_map_count").strip()
    if not count.isdigit() or int(count) >= 65530:
        return Row("memory maps", OK, count or "unknown")
    return Row(
        "memory maps",
        WARN,
        count,
        "a low limit bounds the number of pages on the CPU",
        "sysctl vm.max_map_count=1048576",
    )


def check_directory(machine: DoctorMachine) -> Row:
    problem = machine.directory_problem()
    if problem is not None:
        return Row(
            "directory",
            FAIL,
            machine.path,
            problem.partition(": ")[0],
            problem.partition(": ")[2] or "name another one",
        )
    free, total = machine.disk()
    value = f"{machine.path}: {format_bytes(free)} free of {format_bytes(total)}"
    if free < 10 * 1024**3:
        return Row("directory", WARN, value, "little room for the NVMe tier", "free space or name another directory")
    return Row("directory", OK, value)


def check_file_system(machine: DoctorMachine) -> Row:
    mount = machine.mount()
    if mount is None:
        return Row("file system", WARN, "unknown", "the mount table cannot be read", "none needed if the disk is local")
    value = f"{mount.kind} on {mount.device}"
    if mount.kind in system.MEMORY_FILE_SYSTEMS:
        return Row("file system", FAIL, value, "this is RAM, not a disk", "name a directory on a disk")
    if mount.kind in system.NETWORK_FILE_SYSTEMS:
        return Row("file system", WARN, value, "network storage is slow and shared", "name a directory on a local disk")
    if mount.kind == "overlay":
        return Row(
            "file system", WARN, value, "a container's own layer", "mount a host directory into the container (-v)"
        )
    return Row("file system", OK, value)


def check_direct_io(machine: DoctorMachine) -> Row:
    if machine.directory_problem() is not None:
        return Row("direct I/O", WARN, "not tried", "the directory cannot be used", "see the row above")
    problem = machine.direct_io_problem()
    if problem is None:
        return Row("direct I/O", OK, "works")
    return Row(
        "direct I/O",
        WARN,
        "refused",
        problem,
        "another file system (ext4 and xfs work); buffered I/O is used until then",
    )


def check_disk_kind(machine: DoctorMachine) -> Row:
    mount = machine.mount()
    rotating = machine.read(f"/sys/dev/block/{mount.number}/queue/rotational").strip() if mount else ""
    if not rotating and mount:
        rotating = machine.read(f"/sys/dev/block/{mount.number}/../queue/rotational").strip()
    virtual = mount is not None and os.path.basename(mount.device).startswith(("vd", "xvd"))
    if rotating == "1" and not virtual:
        return Row(
            "disk", WARN, "rotating", "the kernel calls this disk rotating", "an NVMe disk, if it really rotates"
        )
    return Row("disk", OK, "solid state" if rotating == "0" else "virtual" if virtual else "kind unknown")


def check_io_uring(machine: DoctorMachine) -> Row:
    problem = machine.io_uring_problem()
    if problem is None:
        return Row("io_uring", OK, "permitted (not needed: reads and writes use worker threads)")
    return Row("io_uring", OK, f"not permitted (not needed): {problem}")


def check_cufile(machine: DoctorMachine) -> Row:
    found = machine.library("libcufile.so.0")
    driver = os.path.basename(machine.read_link("/sys/module/nvidia_fs")) if found else ""
    facts = machine.probe_device("cuda", 0)
    words = ["library found" if found else "not installed"]
    if driver:
        words.append("nvidia-fs loaded")
    if "rdma_capable" in facts:
        words.append(f"device memory {'can' if facts['rdma_capable'] else 'cannot'} be reached by other devices")
    return Row("cuFile", OK, f"{', '.join(words)} (not needed)")


def check_storage(machine: DoctorMachine) -> Row:
    asked = machine.storage_backend()
    problem = machine.kvikio_problem()
    if problem is None:
        straight = machine.peer_to_peer_problem()
        how = f"through RAM only: {straight}" if straight else "drives may reach the GPU's memory by themselves"
        return Row("storage", OK, f"direct I/O, and kvikio {how}")
    if asked != "kvikio":
        return Row("storage", OK, f"direct I/O (kvikio is not needed, and cannot be used: {problem})")
    return Row(
        "storage", FAIL, "storage_backend:kvikio cannot work", problem, "do what the cause says, or give storage_backend:direct"
    )  # fmt: skip


def check_launch_guard(machine: DoctorMachine) -> Row:
    if not machine.probe_device("cuda", 0).get("available"):
        return Row("launch guard", OK, "not needed without a GPU")
    if machine.native_problem() is not None:
        return Row("launch guard", WARN, "not tried", "tierpage's native parts do not load", "see the row build")
    problem = machine.guard_problem()
    if problem is None:
        return Row("launch guard", OK, "launches can be looked at through CUPTI")
    return Row(
        "launch guard", WARN, "launches cannot be looked at", problem,
        "needed for raw kernels and CUDA graphs under pressure only: docs/limits.md says what is not seen without it",
    )  # fmt: skip


def check_page_code(machine: DoctorMachine) -> Row:
    if not machine.probe_device("cuda", 0).get("available") or not machine.torch_has_cuda():
        return Row("page code", OK, "off by default on the CPU, which copies pages faster than it codes them")
    problem = machine.page_code_problem()
    if not problem:
        return Row("page code", OK, "works: compress:auto and compress:on code pages in RAM and on disk")
    return Row(
        "page code", WARN, "does not work: with compress:auto pages in RAM and on disk stay as they are", problem,
        "do what the cause says, or give compress:off; nothing else depends on it",
    )  # fmt: skip


def check_encryption(machine: DoctorMachine) -> Row:
    found = any(machine.library(name) for name in ("libcrypto.so.3", "libcrypto.so.1.1"))
    return Row("encryption", OK, "libcrypto found" if found else "no libcrypto (only needed for encrypt=True)")


def check_conflicts(machine: DoctorMachine) -> Row:
    found = []
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if "expandable_segments:true" in machine.environment.get(name, "").lower():
            found.append(f"{name} has expandable_segments")
        if "backend:cudamallocasync" in machine.environment.get(name, "").lower():
            found.append(f"{name} selects cudaMallocAsync")
    if machine.environment.get("LD_PRELOAD"):
        found.append(f"LD_PRELOAD={machine.environment['LD_PRELOAD']}")
    if not found:
        return Row("conflicts", OK, "none seen")
    return Row(
        "conflicts",
        WARN,
        "; ".join(found),
        "another memory manager is active",
        "unset it if tensors or figures look wrong",
    )


def check_settings(machine: DoctorMachine) -> Row:
    problem = machine.settings_problem()
    text = machine.environment.get("TIERPAGE_CONF", "")
    if problem is not None:
        return Row("settings", FAIL, f"TIERPAGE_CONF={text!r}", problem, "correct or unset TIERPAGE_CONF")
    return Row("settings", OK, f"TIERPAGE_CONF={text!r}" if text else "TIERPAGE_CONF is not set")


LINKS = (
    ("host_to_device", "RAM to device"),
    ("device_to_host", "device to RAM"),
    ("memory_copy", "RAM to RAM"),
    ("page_encode", "page encode"),
    ("page_decode", "page decode"),
    ("disk_read", "disk read"),
    ("disk_write", "disk write"),
)
_SLOW = {"disk_read": 0.5, "disk_write": 0.3, "host_to_device": 3.0, "device_to_host": 3.0}


def check_links(machine: DoctorMachine) -> list[Row]:
    """Measured GB/s (1e9 bytes) of each link, of coded pages those of their content; about 2 seconds together."""
    try:
        rates = dict(machine.measure_links())
    except Exception as error:  # any failure becomes a row, the doctor goes on
        return [Row("links", WARN, "not measured", str(error).partition("\n")[0], "see the rows above")]
    rows = []
    for key, title in LINKS:
        rate = rates.get(key)
        if not isinstance(rate, (int, float)) or rate <= 0:
            continue
        slow = rate < _SLOW.get(key, 0.0) and machine.counts_as_slow(key)
        cause = "slower than such a link usually is" if slow else ""
        remedy = (
            ""
            if not slow
            else "another disk"
            if key.startswith("disk")
            else "check the PCIe slot and generation (nvidia-smi -q)"
        )
        rows.append(Row(title, WARN if slow else OK, f"{rate:.2f} GB/s", cause, remedy))
    if rates.get("code_error"):
        cause = str(rates["code_error"]).partition("\n")[0]
        rows.append(Row("page encode", WARN, "not measured", cause, "give compress:off until it works"))
    return rows


CHECKS: tuple[Check, ...] = (
    check_build, check_python, check_device, check_vmm, check_host_mapping, check_copy_engines, check_memory,
    check_memlock, check_huge_pages, check_map_count, check_directory, check_file_system, check_direct_io,
    check_disk_kind, check_io_uring, check_cufile, check_storage, check_launch_guard, check_page_code,
    check_encryption, check_conflicts, check_settings,
)  # fmt: skip


DIRECTORY_CHECKS: tuple[Check, ...] = (check_directory, check_file_system, check_direct_io, check_disk_kind)


def _row_of(check: Check, machine: DoctorMachine) -> Row:
    try:
        return check(machine)
    except Exception as error:  # the doctor must never be the patient
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return Row(name, WARN, "unknown", f"the check failed: {type(error).__name__}: {error}", "report this")


def examine(machine: DoctorMachine, *, measure: bool = True) -> list[Row]:
    """All rows, in the order in which they are shown. A check that fails itself becomes a WARN row.

    Where there are several directories, those about a directory come once for each.
    """
    rows = []
    for check in CHECKS:
        rows.append(_row_of(check, machine))
        if check is DIRECTORY_CHECKS[-1]:
            for path in machine.paths[1:]:
                with machine.looking_at(path):
                    rows += [_row_of(again, machine) for again in DIRECTORY_CHECKS]
    return rows + (check_links(machine) if measure else [])
