"""What the doctor asks of the machine. Tests replace single methods; every method returns a value and prints nothing."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tierpage import system
from tierpage.errors import ConfigError

_IO_URING_SETUP = 425  # the same number on every architecture


class DoctorMachine:
    """This machine, for the directories ``path`` (default: nvme_path of TIERPAGE_CONF, else the current directory).

    ``path`` is the one that is looked at now, ``paths`` are all.
    """

    def __init__(self, path: str | Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.environment: Mapping[str, str] = dict(os.environ if environment is None else environment)
        given = (path,) if isinstance(path, str) else tuple(path or ())
        self.paths = [os.path.abspath(each) for each in given or self._configured_paths() or (os.getcwd(),)]
        self.path = self.paths[0]
        self._facts: dict[tuple[str, int], dict[str, Any]] = {}

    def _configured_paths(self) -> tuple[str, ...]:
        from tierpage.settings import parse_request, paths_of

        try:
            return paths_of(parse_request({}, self.environment.get("TIERPAGE_CONF")).values.get("nvme_path"))
        except ConfigError:
            return ()

    @contextmanager
    def looking_at(self, path: str) -> Iterator[None]:
        """Answers about ``path`` inside of the block."""
        before, self.path = self.path, path
        try:
            yield
        finally:
            self.path = before

    def version(self) -> str:
        import tierpage

        return tierpage.__version__

    def torch_version(self) -> str:
        import torch

        return str(torch.__version__)

    def torch_has_cuda(self) -> bool:
        """Whether the installed torch was built for CUDA."""
        import torch

        return torch.version.cuda is not None

    def native_problem(self) -> str | None:
        """Why the native parts do not load, with the remedy in further lines; None if they do."""
        from tierpage import native

        try:
            native.engine_module()
            native.TorchLibrary.load()
        except ImportError as error:
            return str(error)
        return None

    def guard_problem(self) -> str | None:
        """Why launches cannot be looked at (``launch_guard``); None if they can. Where they are already, they can."""
        from tierpage import native
        from tierpage.session import current_or_none

        if current_or_none() is not None:
            return None  # its own line of config() tells
        library = native.TorchLibrary.load()
        refusal = library.open_guard()
        if not refusal:
            library.close_guard()
        return refusal or None

    @functools.cached_property
    def _page_code(self) -> tuple[bytes, str]:
        """The kernels of coded pages, and why there are none."""
        from tierpage import page_code

        try:
            return page_code.compiled(0), ""
        except Exception as error:  # whatever the compiler, its cache or torch says: nothing is coded then
            return b"", f"{error}".partition("\n")[0] or type(error).__name__

    def page_code_problem(self) -> str:
        """Why pages cannot be coded on the GPU; empty if they can. Compiles the kernels, unless they are kept."""
        return self._page_code[1]

    def probe_device(self, kind: str, index: int) -> dict[str, Any]:
        """Facts of a device from the driver; {"available": False, "reason": ...} without one."""
        if (kind, index) not in self._facts:
            from tierpage import native

            try:
                self._facts[kind, index] = dict(native.engine_module().probe_device(kind, index))
            except Exception as error:
                self._facts[kind, index] = {"available": False, "reason": str(error).partition("\n")[0]}
        return self._facts[kind, index]

    def measure_links(self) -> dict[str, Any]:
        """GB/s by link. Raises where the native part cannot."""
        from tierpage import native

        device = "cuda" if self.probe_device("cuda", 0).get("available") else "cpu"
        kernels = self._page_code[0] if device == "cuda" else b""
        usable = all(self.directory_problem(path) is None for path in self.paths)
        with native.translated():
            return dict(native.engine_module().measure_links(device, 0, self.paths if usable else [], kernels))

    def counts_as_slow(self, key: str) -> bool:
        """Copies to the device are only judged where the device is a GPU."""
        return key.startswith("disk") or bool(self.probe_device("cuda", 0).get("available"))

    def memory(self) -> system.Memory:
        return system.memory()

    def memlock_limit(self) -> int | None:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return None if soft == resource.RLIM_INFINITY else soft

    def read(self, path: str) -> str:
        """A file's text, empty where it cannot be read."""
        try:
            return Path(path).read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def read_link(self, path: str) -> str:
        return path if os.path.exists(path) else ""

    def disk(self) -> tuple[int, int]:
        return system.free_bytes(self.path)

    def mount(self) -> system.Mount | None:
        return system.mount_of(self.path)

    def directory_problem(self, path: str | None = None) -> str | None:
        """Why the NVMe tier cannot live in ``path``, by default the one that is looked at; None if it can."""
        from tierpage.defaults import ThisMachine, check_directory

        try:
            check_directory(path or self.path, ThisMachine())
        except ConfigError as error:
            return str(error)
        return None

    def direct_io_problem(self) -> str | None:
        """Writes and reads one aligned block past the page cache, in a file that has no name afterwards."""
        number, name = tempfile.mkstemp(prefix=".tierpage-", dir=self.path)
        try:
            os.close(number)
            direct = os.open(name, os.O_RDWR | getattr(os, "O_DIRECT", 0))
            try:
                with mmap.mmap(-1, 4096) as block:
                    os.pwrite(direct, block, 0)
                    os.preadv(direct, [block], 0)
            finally:
                os.close(direct)
        except OSError as error:
            return f"{error.strerror} (errno {error.errno})"
        finally:
            os.unlink(name)
        return None

    @functools.cached_property
    def _io_uring(self) -> str | None:
        parameters = (ctypes.c_uint8 * 120)()
        libc = ctypes.CDLL(None, use_errno=True)
        number = libc.syscall(_IO_URING_SETUP, 1, ctypes.byref(parameters))
        if number >= 0:
            os.close(number)
            return None
        code = ctypes.get_errno()
        causes = {
            errno.ENOSYS: "the kernel lacks it",
            errno.EPERM: "sysctl kernel.io_uring_disabled or a seccomp profile",
        }
        return causes.get(code, os.strerror(code))

    def io_uring_problem(self) -> str | None:
        """Why io_uring is not permitted; None if it is."""
        return self._io_uring

    def library(self, name: str) -> bool:
        """Whether the dynamic loader finds a library."""
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    def storage_backend(self) -> str:
        """What TIERPAGE_CONF asks for; "auto" where it does not, or is wrong."""
        from tierpage.settings import parse_environment

        try:
            return parse_environment(self.environment.get("TIERPAGE_CONF")).get("storage_backend", "auto")
        except ConfigError:
            return "auto"

    def kvikio_problem(self) -> str | None:
        """Why the kvikio extension cannot be used, with the remedy; None if it can. Loads it."""
        from tierpage import storage

        return storage.kvikio_problem()

    def peer_to_peer_problem(self) -> str:
        """Why drives cannot reach the GPU's memory by themselves; empty if they may. kvikio has been loaded."""
        from tierpage import native

        if not self.probe_device("cuda", 0).get("available"):
            return "there is no GPU"
        return str(native.engine_module().storage_peer_to_peer())

    def settings_problem(self) -> str | None:
        """What is wrong with TIERPAGE_CONF; None if nothing is."""
        from tierpage.settings import parse_request

        try:
            parse_request({}, self.environment.get("TIERPAGE_CONF"))
        except ConfigError as error:
            return str(error)
        return None

    def configuration(self) -> str:
        """The settings in force as a TIERPAGE_CONF line: those given, then the budgets that the defaults give."""
        from tierpage.defaults import resolve
        from tierpage.settings import parse_request

        given = self.environment.get("TIERPAGE_CONF", "")
        asked = {} if "nvme_path:" in given else {"nvme_path": "[" + ",".join(self.paths) + "]"}
        if len(self.paths) == 1 and asked:
            asked["nvme_path"] = self.path
        try:
            config = resolve(parse_request(dict(asked), given))
        except (ConfigError, OSError, RuntimeError):
            return given
        parts = [f"device:{config.device}:{config.device_index}"]
        parts += [f"{tier}_budget:{getattr(config, f'{tier}_budget') >> 20}MiB" for tier in ("device", "host", "nvme")]
        shown = [part for part in parts if part.partition(":")[0] + ":" not in given]
        return ",".join(filter(None, [given, *(f"{name}:{value}" for name, value in asked.items()), *shown]))
