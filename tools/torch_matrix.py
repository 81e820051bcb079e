"""Does csrc/torch compile for each torch that pyproject.toml claims, and does the result load?

    python tools/torch_matrix.py 2.11 2.12 2.13          headers of these versions, wherever pip finds the wheels
    python tools/torch_matrix.py torch-2.12.0-*.whl      headers out of a wheel, also out of one at an https address
    python tools/torch_matrix.py venv/lib/.../torch      an installed torch, or a folder that holds its include/

csrc/torch needs torch's headers alone: its libraries are only named, and found when torch has loaded them. So for a
version pip is merely asked where its wheel lies, and of the wheel only the part with the headers is fetched (10 MB
instead of 200 to 900), where the server answers requests for a range. Headers are kept in build/torch_matrix.

Then one build, with a library for each version, with warnings as errors. What is compiled is also loaded, with every
symbol resolved, by each interpreter whose torch has that version: the one that runs this, and those that --python
names. A version that no interpreter has is only compiled, and the table at the end says so.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "torch_matrix"
BLOCK = 4 << 20  # the headers lie together in a wheel, so they arrive in a few blocks
VERSION_HEADER = "include/torch/headeronly/version.h"
LOAD = """
import ctypes, os, sys, torch
ctypes.CDLL(sys.argv[1], mode=os.RTLD_NOW | os.RTLD_LOCAL)
"""


class RemoteFile(io.RawIOBase):
    """A file at an https address that is read in blocks, each asked for once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.at = 0
        self.blocks: dict[int, bytes] = {}
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD")) as answer:
            self.size = int(answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def block(self, number: int) -> bytes:
        if number not in self.blocks:
            first = number * BLOCK
            last = min(first + BLOCK, self.size) - 1
            request = urllib.request.Request(self.address, headers={"Range": f"bytes={first}-{last}"})
            with urllib.request.urlopen(request) as answer:
                if answer.status != 206:
                    raise SystemExit(
                        f"{self.address}: the server sends whole files only; download it and name the file"
                    )
                self.blocks[number] = answer.read()
        return self.blocks[number]

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.at >= self.size:
            return 0
        data = self.block(self.at // BLOCK)[self.at % BLOCK :][: len(buffer)]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def version_of(root: Path) -> str:
    """Major and minor version of the torch in a folder, as "2.13"."""
    found = re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", (root / VERSION_HEADER).read_text())
    return ".".join(found[:2])


def unpack_headers(wheel: Path | RemoteFile, name: str) -> Path:
    root = WORK / Path(name).stem / "torch"
    if (root / "complete").exists():
        return root
    print(f"headers of {name}", flush=True)
    file: io.RawIOBase | io.BufferedReader = wheel.open("rb") if isinstance(wheel, Path) else wheel
    with file, zipfile.ZipFile(io.BufferedReader(file, 1 << 16) if isinstance(wheel, RemoteFile) else file) as archive:
        members = [entry for entry in archive.infolist() if entry.filename.startswith("torch/include/")]
        for entry in sorted(members, key=lambda entry: entry.header_offset):
            archive.extract(entry, root.parent)
    (root / "complete").touch()
    return root


def wheel_address(version: str) -> str:
    """Where pip would take the wheel of a version from; nothing is installed and, as a rule, nothing fetched."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    command += ["--only-binary=:all:", "--report", "-", f"torch=={version}.*"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"pip finds no wheel of torch {version}:\n{result.stderr}")
    return json.loads(result.stdout)["install"][0]["download_info"]["url"]


def torch_root(what: str) -> Path:
    """A folder with torch's include/, from a version, a wheel or a folder."""
    if re.fullmatch(r"\d+\.\d+", what):
        what = wheel_address(what)
    if what.startswith("file://"):
        what = urllib.request.url2pathname(what.removeprefix("file://"))
    if re.match(r"https?://", what):
        return unpack_headers(RemoteFile(what), urllib.request.unquote(what.rpartition("/")[2]))
    path = Path(what)
    if path.suffix == ".whl" and path.is_file():
        return unpack_headers(path, path.name)
    for root in (path, path / "torch"):
        if (root / VERSION_HEADER).is_file():
            return root.resolve()
    raise SystemExit(f"{what} is no version like 2.13, no wheel, and no folder with torch's include/")


def compile_for(roots: dict[str, Path]) -> dict[str, Path | None]:
    """The library of each version, None where it does not compile."""
    build = WORK / "build"
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", "-DTIERPAGE_WERROR=ON"]
    configure += ["-DTIERPAGE_KVIKIO=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*configure, f"-DTIERPAGE_TORCH_ROOTS={';'.join(map(str, roots.values()))}"], check=True)
    libraries: dict[str, Path | None] = {}
    for version in roots:
        target = f"tierpage_torch_{version.replace('.', '_')}"
        done = subprocess.run(["cmake", "--build", str(build), "--parallel", "--target", target]).returncode == 0
        libraries[version] = build / "csrc" / "torch" / f"lib{target}.so" if done else None
    return libraries


def torch_of(python: str) -> str:
    """Major and minor version of an interpreter's torch, "" where it has none."""
    code = "from importlib.metadata import version; print('.'.join(version('torch').split('.')[:2]))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def load(library: Path, pythons: list[str]) -> str:
    """What came of loading a library in each of these interpreters."""
    if not pythons:
        return "not loaded: no interpreter has this torch"
    for python in pythons:
        result = subprocess.run([python, "-c", LOAD, str(library)], capture_output=True, text=True)
        if result.returncode:
            return f"FAILED in {python}: {result.stderr.strip().splitlines()[-1]}"
    return f"loads in {', '.join(pythons)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch", nargs="+", help="a version (2.13), a wheel, or a folder with torch's include/")
    parser.add_argument("--python", action="append", default=[], help="another interpreter that has a torch")
    parser.add_argument("--headers", type=Path, metavar="FOLDER", help="only lay the headers of 2.13 into FOLDER/2.13")
    arguments = parser.parse_args()
    roots = {version_of(root): root for root in map(torch_root, arguments.torch)}
    if arguments.headers:
        arguments.headers.mkdir(parents=True, exist_ok=True)
        for version, root in roots.items():
            (arguments.headers / version).unlink(missing_ok=True)
            (arguments.headers / version).symlink_to(root)
        return 0
    interpreters = {python: torch_of(python) for python in (sys.executable, *arguments.python)}
    failed = False
    table = []
    for version, library in compile_for(roots).items():
        pythons = [python for python, has in interpreters.items() if has == version]
        outcome = load(library, pythons) if library else "FAILED to compile"
        failed |= "FAILED" in outcome
        table.append(f"torch {version}: {outcome}")
    print("\n".join(table))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
