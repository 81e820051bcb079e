"""What run.sh says, and does, before it builds anything: on a system that lacks something, or after an interrupt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness

SCRIPT = Path(__file__).resolve().parents[2] / "run.sh"
BASH = shutil.which("bash")
VERSION = "python{}.{}".format(*sys.version_info[:2])

pytestmark = [
    pytest.mark.skipif(harness.DEVICE != "cpu", reason="nothing of it depends on the device"),
    pytest.mark.skipif(BASH is None or not SCRIPT.exists(), reason="needs bash and a source tree"),
]

# Stands in for an interpreter: says where its headers are, and whether it can make environments, as the test wants it.
PYTHON = """#!/bin/sh
case "$*" in
  *INCLUDEPY*) echo "$HEADERS" ;;
  *ensurepip*) exit "$NO_ENSUREPIP" ;;
  *"-m venv"*) echo "makes an environment" >&2; exit 9 ;;
  *) exec {real} "$@" ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with run.sh, a stand-in for Python, and a path on which nothing else is; the user is not root."""
    shutil.copy(SCRIPT, tmp_path / "run.sh")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tmp_path / "Python.h").touch()
    for name in ("dirname", "nproc", "sed", "sh"):
        (tools / name).symlink_to(str(shutil.which(name)))
    for name, text in (("id", "echo 1000"), ("g++", ""), ("cmake", "")):
        script(tools / name, f"#!/bin/sh\n{text}\n")
    script(tmp_path / "python", PYTHON.format(real=sys.executable))
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(tree: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Exit code and stderr."""
    environment = {"PATH": str(tree / "tools"), "HEADERS": str(tree), "NO_ENSUREPIP": "0", **variables}
    done = subprocess.run(
        [str(BASH), str(tree / "run.sh"), *words], env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def missing(packages: str) -> str:
    """The one line of run.sh. A fresh system does not even know of the packages before it has updated its lists."""
    return f"run.sh: missing: {packages}. Run: sudo apt-get update && sudo apt-get install {packages}\n"


def test_python_may_lack_its_headers(tree: Path) -> None:
    """As Debian's python3 does without python3-dev: nothing could be compiled."""
    before = sorted(os.listdir(tree))
    for command in ("setup", "demo"):
        code, said = run(tree, command, PYTHON=str(tree / "python"), HEADERS="/no/such/include")
        assert (code, said) == (2, missing(f"{VERSION}-dev"))
    assert sorted(os.listdir(tree)) == before


def test_all_that_is_missing_is_named_at_once(tree: Path) -> None:
    (tree / "tools" / "g++").unlink()
    code, said = run(tree, "setup", PYTHON=str(tree / "python"), HEADERS="/no/such/include", NO_ENSUREPIP="1")
    assert (code, said) == (2, missing(f"g++ {VERSION}-dev {VERSION}-venv"))


def test_what_the_tests_need_is_named_with_it(tree: Path) -> None:
    (tree / "tools" / "cmake").unlink()
    code, said = run(tree, "test", PYTHON=str(tree / "python"), NO_ENSUREPIP="1")
    assert code == 2
    assert said.startswith("run.sh: missing: cmake ")
    assert f" ninja-build clang clang-tidy {VERSION}-venv. Run: " in said
    assert said.count("\n") == 1


def test_there_may_be_no_python(tree: Path) -> None:
    code, said = run(tree, "demo")
    assert (code, said) == (2, missing("python3 python3-dev python3-venv"))
    (tree / "tools" / "g++").unlink()
    assert run(tree, "setup") == (2, missing("python3 g++ python3-dev python3-venv"))
    code, said = run(tree, "demo", PYTHON="/no/such/python")
    assert code == 2
    assert said.startswith("run.sh: no Python 3.11, 3.12 or 3.13 found.")


def test_an_environment_that_was_made_half_is_made_again(tree: Path) -> None:
    """Ctrl-C between its Python and its pip."""
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)
    code, said = run(tree, "setup", PYTHON=str(tree / "python"))
    assert code == 9
    assert "makes an environment" in said


def test_usage(tree: Path) -> None:
    done = subprocess.run([str(BASH), str(tree / "run.sh")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "./run.sh demo" in done.stdout
