"""Writes python/tierpage/_C.pyi from the built module; ``--check`` compares instead and exits 1 where they differ."""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).resolve().parent.parent / "python" / "tierpage" / "_C.pyi"
# torch must be imported before the module; the generator itself does not do it.
PROGRAM = "import sys, torch; from pybind11_stubgen import main; sys.argv[1:] = {arguments!r}; main()"


def generate() -> str:
    """The stub of the installed ``tierpage._C``."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["tierpage._C", "--output-dir", folder, "--exit-code"]
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(arguments=arguments)],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        text = (Path(folder) / "tierpage" / "_C.pyi").read_text()
    return for_oldest("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def for_oldest(text: str) -> str:
    """The stub as Python 3.11 makes it: from 3.12 on collections.abc has a Buffer, which 3.11 lacks."""
    if "collections.abc.Buffer" in text:
        text = text.replace("collections.abc.Buffer", "typing_extensions.Buffer")
        text = text.replace("import typing\n", "import typing\nimport typing_extensions\n", 1)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    made = generate()
    if not check:
        STUB.write_text(made)
        return 0
    kept = STUB.read_text() if STUB.exists() else ""
    if kept == made:
        return 0
    sys.stdout.writelines(difflib.unified_diff(kept.splitlines(True), made.splitlines(True), "kept", "generated"))
    print(f"{STUB.name} is out of date: run python tools/stubs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
