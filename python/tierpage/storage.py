"""Chooses what reads and writes the spill file: direct I/O, which is part of the engine, or the kvikio extension.

The extension is a library beside ``_C``, named ``_kvikio_<release>.so`` after the release of libkvikio that it was built
for; it is there only where libkvikio was installed at build time, and is opened only when it is asked about. A reason why
it cannot be used is a text here; only an explicit choice turns it into an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierpage import native
from tierpage.errors import ConfigError
from tierpage.settings import Config, paths_of

EXTRA = "pip install 'tierpage[gds]'"
_EXTENSION = re.compile(r"_kvikio_(\d+)_(\d+)\.so")
_log = logging.getLogger("tierpage")


@dataclass(frozen=True)
class Backend:
    """What was chosen. ``to_device``: drives read and write device memory, without RAM between."""

    name: str  # "direct", "kvikio", or "none" without an NVMe tier
    reason: str
    to_device: bool = False

    def engine_options(self) -> dict[str, str]:
        """The part of the options of ``_C.Runtime`` that follows from the choice."""
        extension = "extension_to_device" if self.to_device else "extension"
        return {"storage": extension if self.name == "kvikio" else "direct"}


def find_extension() -> tuple[Path, str] | None:
    """The extension's file and the release of libkvikio that it was built for, ``None`` where there is none."""
    for folder in native.package_folders():
        for path in sorted(folder.glob("_kvikio_*.so"), reverse=True):
            match = _EXTENSION.fullmatch(path.name)
            if match:
                return path, f"{match[1]}.{match[2]}"
    return None


def _package_file(package: str, *names: str) -> Path | None:
    """A file inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for name in names:
            for path in sorted(Path(folder).glob(name), reverse=True):
                if path.is_file():
                    return path
    return None


def _version_of(library: Path) -> str:
    """Release of an installed libkvikio, "26.10"; empty where it does not say."""
    try:
        words = (library.parent.parent / "VERSION").read_text().strip().split(".")
    except (OSError, UnicodeDecodeError):
        return ""
    return ".".join(words[:2])


@functools.cache
def kvikio_problem() -> str | None:
    """Loads the kvikio extension, once. Returns why it cannot be used, with the remedy; ``None`` if it can."""
    found = find_extension()
    if found is None:
        return (
            "this build of tierpage has no kvikio extension, because libkvikio was not installed when it was built. "
            "Run: pip install --no-deps 'libkvikio-cu13==26.10.*' 'rapids-logger==0.3.*' nvidia-cufile, then build tierpage "
            "again with: pip install --no-build-isolation --force-reinstall --no-deps ."
        )
    path, release = found
    libkvikio = _package_file("libkvikio", "lib64/libkvikio.so")
    logger = _package_file("rapids_logger", "lib64/librapids_logger.so")
    if libkvikio is None or logger is None:
        missing = " and ".join(name for name, at in (("libkvikio", libkvikio), ("rapids_logger", logger)) if at is None)
        return f"the extension is there, but {missing} is not installed. Run: {EXTRA}"
    installed = _version_of(libkvikio)
    if installed != release:
        return (
            f"the extension was built for libkvikio {release}, but {installed or 'an unknown release'} is installed. "
            f"Run: pip install 'libkvikio-cu13=={release}.*'"
        )
    cufile = _package_file("nvidia", "*/lib/libcufile.so.0")  # only needed for drives that reach the device
    if cufile is not None:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(cufile))  # before libkvikio, which looks for it
    for library in (logger, libkvikio):
        try:
            ctypes.CDLL(str(library))  # met by its name when the extension is opened
        except OSError as error:
            return f"{library.name} does not load: {error}. Run: {EXTRA}"
    problem = str(native.engine_module().load_storage_extension(str(path)))
    if "libcuda" in problem:
        return (
            "kvikio asks the CUDA driver about every pointer, and there is none: libcuda.so.1 cannot be opened. "
            "Install the GPU's driver, or give storage_backend='direct'"
        )
    return f"{problem}. Give storage_backend='direct'" if problem else None


def choose(config: Config) -> Backend:
    """Decides for these settings and tells the log. Raises ConfigError where an explicit choice cannot work."""
    backend = _choose(config)
    if backend.name != "none":
        _log.info("storage_backend=%r: %s, because %s", config.storage_backend, backend.name, backend.reason)
    return backend


def _choose(config: Config) -> Backend:
    if config.nvme_path is None:
        return Backend("none", "there is no nvme_path")
    if config.storage_backend == "direct":
        return Backend("direct", "it was asked for")
    explicit = config.storage_backend == "kvikio"
    if not explicit and config.device != "cuda":
        return Backend("direct", "there is no device memory that a drive could reach by itself")
    problem = kvikio_problem()
    if problem is not None and explicit:
        raise ConfigError(f"storage_backend='kvikio' cannot work here: {problem}.")
    if problem is not None:
        return Backend("direct", problem)
    straight = _straight_problem(config)
    if straight is None:
        return _faster(config, explicit)
    if explicit:
        return Backend("kvikio", f"it was asked for; through RAM, because {straight}")
    return Backend("direct", straight)


def _straight_problem(config: Config) -> str | None:
    """Why drives cannot move pages to and from device memory by themselves; ``None`` if they may."""
    if config.device != "cuda":
        return "there is no device memory that a drive could reach by itself"
    problem = str(native.engine_module().storage_peer_to_peer())
    if problem:
        return f"drives cannot reach the GPU's memory here: {problem}"
    if config.verify != "off":
        return f"verify={config.verify!r} needs the pages in RAM (verify='off' does not)"
    if config.encrypt:
        return "encrypt=True needs the pages in RAM"
    return None


def _faster(config: Config, explicit: bool) -> Backend:
    """Peer to peer may be there: proves it on a file in each directory of nvme_path and times both ways; the worst counts."""
    probes = [compare(config, path, peer_to_peer=True) for path in paths_of(config.nvme_path)]
    rates = next((probe for probe in probes if probe["problem"]), None) or min(
        probes, key=lambda probe: probe["extension_read"]
    )
    if rates["problem"]:
        reason = f"the probe of the drive's own way to the GPU failed: {rates['problem']}"
        return (
            Backend("kvikio", f"it was asked for; through RAM, because {reason}")
            if explicit
            else Backend("direct", reason)
        )
    words = describe(rates)
    straight = rates["extension_read"] + rates["extension_write"]
    if explicit or straight > rates["through_memory_read"] + rates["through_memory_write"]:
        return Backend("kvikio", f"drives reach the GPU's memory by themselves: {words}", to_device=True)
    return Backend("direct", f"it is the faster of two ways that work: {words}")


def compare(config: Config, directory: str, *, peer_to_peer: bool) -> Mapping[str, Any]:
    """GB/s (1e9 bytes) between drive and device, 64 MiB each way; "problem" says why not, empty if all went well."""
    module = native.engine_module()
    return dict(module.compare_storage(config.device, config.device_index, directory, peer_to_peer))


def describe(rates: Mapping[str, Any]) -> str:
    """The four rates in words."""
    return (
        f"{rates['extension_read']:.2f} GB/s read and {rates['extension_write']:.2f} written by kvikio, "
        f"{rates['through_memory_read']:.2f} and {rates['through_memory_write']:.2f} through RAM"
    )
