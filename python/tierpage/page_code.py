"""The kernels of coded pages (docs/page-format.md), compiled for the device at hand.

NVRTC, which comes with torch's CUDA builds, compiles the text that the package carries. What it made is kept in
``$XDG_CACHE_HOME/tierpage`` (``~/.cache/tierpage``), in a folder that only its owner may use, one file for each text,
device kind and compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tierpage.settings import Config

__all__ = ["compiled", "engine_options"]

_log = logging.getLogger("tierpage")
_FOLDER = Path(__file__).parent / "codec"
_PROGRAM = "page_code.cu"
_INCLUDED = ("page_layout.cuh", "page_decode.cu", "page_encode.cu")
_OPTIONS = ("-std=c++17",)
_MAGIC = b"tierpage page code 1\n"


class _Unavailable(Exception):
    """There is no compiled code, with the reason in words."""


def engine_options(config: Config) -> dict[str, object]:
    """What ``_C.Runtime`` is to be told: the kernels, or why there are none."""
    nothing: dict[str, object] = {"code_kernels": b"", "code_refusal": ""}
    if config.compress == "off" or config.device != "cuda":
        return nothing
    try:
        return {**nothing, "code_kernels": compiled(config.device_index)}
    except _Unavailable as reason:
        return {**nothing, "code_refusal": str(reason)}
    except (
        OSError,
        RuntimeError,
        AssertionError,
        AttributeError,
    ) as error:  # a broken installation is no reason to fail
        return {**nothing, "code_refusal": f"the page code cannot be compiled: {type(error).__name__}: {error}"}


def compiled(device_index: int) -> bytes:
    """The kernels as the driver loads them, from the cache or made now. Raises an error that says what is missing."""
    major, minor = torch.cuda.get_device_capability(device_index)
    compiler = _Compiler(_library())
    program = (_FOLDER / _PROGRAM).read_bytes()
    headers = {f"codec/{name}": (_FOLDER / name).read_bytes() for name in _INCLUDED}
    target = compiler.target(10 * major + minor)
    key = hashlib.sha256(repr((program, sorted(headers.items()), _OPTIONS, target, compiler.version)).encode())
    file = f"page_code_{target}_{key.hexdigest()[:32]}"
    folder = _cache_folder()
    if folder is not None and (kept := _read(folder / file)) is not None:
        return kept
    began = time.perf_counter()
    made = compiler.compile(program, headers, target)
    _log.info("compiled the page code for %s in %.1f s", target, time.perf_counter() - began)
    if folder is not None:
        _write(folder / file, made)
    return made


# ---- the compiler


def _candidates() -> Iterator[str]:
    """Names of the library, likeliest first; torch's own release before others."""
    release = (torch.version.cuda or "").partition(".")[0]
    majors = [release] if release else []
    majors += [major for major in ("13", "12") if major != release]
    roots = [Path(torch.__file__).parent / "lib"]
    packages = Path(torch.__file__).parent.parent / "nvidia"
    roots += [packages / name / "lib" for name in ("cuda_nvrtc", "cu13", "cu12")]
    roots += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "lib64"]
    for major in majors:
        yield f"libnvrtc.so.{major}"  # loaded already, or where the system looks
        for root in roots:
            yield from (
                str(path) for path in sorted(root.glob(f"libnvrtc*.so.{major}*")) if "builtins" not in path.name
            )


def _library() -> ctypes.CDLL:
    for name in _candidates():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise _Unavailable(
        "NVRTC (libnvrtc.so), which compiles the page code, is not there: it comes with torch's CUDA builds "
        "(pip install nvidia-cuda-nvrtc-cu12, or nvidia-cuda-nvrtc for CUDA 13)"
    )


class _Compiler:
    """NVRTC's calls (docs.nvidia.com/cuda/nvrtc)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            raise _Unavailable(f"{name} failed: {self._library.nvrtcGetErrorString(result).decode()}")

    def target(self, capability: int) -> str:
        """Machine code for the device, or, where the compiler is older than that, what the driver can translate."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        if capability in list(known):
            return f"sm_{capability}"
        older = [architecture for architecture in known if architecture < capability]
        if not older:
            raise _Unavailable(
                f"NVRTC {self.version[0]}.{self.version[1]} compiles nothing for a device sm_{capability}"
            )
        return f"compute_{max(older)}"

    def compile(self, text: bytes, headers: dict[str, bytes], target: str) -> bytes:
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        texts = (ctypes.c_char_p * len(headers))(*headers.values())
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, _PROGRAM.encode(), len(headers), texts, names)
        try:
            options = [f"--gpu-architecture={target}".encode(), *(option.encode() for option in _OPTIONS)]
            given = (ctypes.c_char_p * len(options))(*options)
            if self._library.nvrtcCompileProgram(program, len(options), given) != 0:
                log = self._output(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise _Unavailable(f"the page code does not compile for {target}: {log[:500]}")
            return self._output(program, "CUBIN" if target.startswith("sm_") else "PTX")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        output = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, output)
        return output.raw


# ---- the cache. What lies in it is run on the device: nobody else may have written it.


def _cache_folder() -> Path | None:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))
    if not home.is_absolute():
        return None  # there is no home
    folder = home / "tierpage"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None  # compiled anew each time: a read-only home is no error
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if private else None


def _read(path: Path) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            kept = file.read()
    except OSError:
        return None
    header, digest, code = kept[: len(_MAGIC)], kept[len(_MAGIC) : len(_MAGIC) + 32], kept[len(_MAGIC) + 32 :]
    whole = header == _MAGIC and digest == hashlib.sha256(code).digest()
    return code if whole else None


def _write(path: Path, code: bytes) -> None:
    """All of it or nothing, whoever writes it at the same time. A full disk is no error: it is compiled again."""
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(code).digest() + code)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
