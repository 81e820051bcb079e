"""What the machine offers: memory, container limits, mounts, disks. Reads files below ``root``; tests pass a fake one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "9p", "afs", "fuse.sshfs"}
)
_NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number where there is no limit


@dataclass(frozen=True)
class Memory:
    """Bytes of RAM. ``limit`` and ``available`` respect the cgroup; ``source`` says which bound applied."""

    total: int
    limit: int
    available: int
    source: str


@dataclass(frozen=True)
class Mount:
    """One mounted file system: where, its type, its device and whether it is read-only."""

    point: str
    kind: str
    device: str
    number: str
    read_only: bool


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _read_int(path: Path) -> int | None:
    text = _read(path)
    if text is None or not text.strip().isdigit():
        return None
    return int(text)


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    values: dict[str, int] = {}
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        found = re.match(r"(\w+(?:\(\w+\))?):\s+(\d+)( kB)?", line)
        if found:
            values[found.group(1)] = int(found.group(2)) * (1024 if found.group(3) else 1)
    return values


def _statistic(folder: Path, name: str) -> int:
    for line in (_read(folder / "memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _cgroup_folders(base: Path, relative: str) -> list[Path]:
    """The group's folder and its parents up to the mount; in containers only the mount itself may exist."""
    folder = base / relative.lstrip("/")
    folders = []
    while True:
        folders.append(folder)
        if folder == base or base not in folder.parents:
            return folders
        folder = folder.parent


def cgroup_memory(root: Path = Path("/")) -> tuple[int, int] | None:
    """(limit, headroom) in bytes of the tightest memory cgroup, v2 or v1; ``None`` without a limit.

    Headroom counts reclaimable file cache (inactive_file) as free.
    """
    best: tuple[int, int] | None = None
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        if parts[0] == "0" and not parts[1]:
            base, limit_name, usage_name, cache_name = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in parts[1].split(","):
            base, limit_name, usage_name = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache_name = "total_inactive_file"
        else:
            continue
        for folder in _cgroup_folders(root / base, parts[2]):
            limit = _read_int(folder / limit_name)
            if limit is None or limit >= _NO_LIMIT:
                continue
            usage = (_read_int(folder / usage_name) or 0) - _statistic(folder, cache_name)
            headroom = max(0, limit - max(0, usage))
            if best is None or headroom < best[1]:
                best = (limit, headroom)
    return best


def memory(root: Path = Path("/")) -> Memory:
    """RAM that this process may use: the machine's and the cgroup's bound together."""
    info = meminfo(root)
    total = info.get("MemTotal", 0)
    available = info.get("MemAvailable", info.get("MemFree", 0))
    group = cgroup_memory(root)
    if group is None or group[0] >= total:
        return Memory(total, total, available, "available RAM")
    if group[1] < available:
        return Memory(total, group[0], group[1], "cgroup headroom")
    return Memory(total, group[0], available, "available RAM")


def mounts(root: Path = Path("/")) -> list[Mount]:
    """The mount table of this process, in mount order."""
    found = []
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, more = left.split(), right.split()
        if len(fields) >= 6 and len(more) >= 2:
            point = fields[4].replace("\\040", " ")
            options = fields[5].split(",") + (more[2].split(",") if len(more) > 2 else [])
            found.append(Mount(point, more[0], more[1], fields[2], "ro" in options))
    return found


def mount_of(path: str, root: Path = Path("/")) -> Mount | None:
    """The mount that holds ``path`` (the longest matching mount point, the last one mounted there)."""
    real = os.path.realpath(path)
    best: Mount | None = None
    for mount in mounts(root):
        inside = mount.point == "/" or real == mount.point or real.startswith(mount.point + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def free_bytes(path: str) -> tuple[int, int]:
    """(free, total) bytes of the file system at ``path`` for this user. Raises OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def local_ranks(environment: dict[str, str] | os._Environ[str]) -> int:
    """Processes that share this machine's RAM and disk: LOCAL_WORLD_SIZE as torchrun sets it, else 1."""
    text = environment.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdigit() else 1


_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(count: float) -> str:
    """Bytes as text with a binary unit and one decimal, e.g. "1.5 GiB"; exact below 1 KiB."""
    size = float(count)
    for unit in _BINARY_UNITS:
        if abs(size) < 1024 or unit == _BINARY_UNITS[-1]:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
