"""Builds the site of docs/, with warnings as errors, and checks that it has every public name of the package.

    python tools/build_docs.py            into build/site
    python tools/build_docs.py FOLDER
    python tools/build_docs.py --requirements    prints what it needs beside torch: the extra "docs" of pyproject.toml

It needs neither a compiled tierpage nor a network.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("tierpage", "tierpage.errors", "tierpage.transformers")
UNDOCUMENTED = {"tierpage.__version__"}  # a text


def build(folder: Path) -> int:
    from sphinx.cmd.build import build_main

    return build_main(
        ["-q", "-E", "-W", "--keep-going", "-b", "html", "-d", f"{folder}.parsed", str(ROOT / "docs"), str(folder)]
    )


def described(folder: Path) -> set[str]:
    """The Python names that the site's own index of objects has."""
    from sphinx.util.inventory import InventoryFile

    with (folder / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: name)
    return {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}


def missing(names: set[str]) -> Iterator[str]:
    """Public names without a description. One that two modules offer needs one alone."""
    from sphinx.ext.autodoc.mock import mock

    for module in MODULES:
        with mock(["transformers"]):
            public = importlib.import_module(module).__all__
        for name in public:
            if not {f"{place}.{name}" for place in MODULES} & (names | UNDOCUMENTED):
                yield f"{module}.{name}"


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["optional-dependencies"]["docs"])


def main() -> int:
    if sys.argv[1:] == ["--requirements"]:
        print("\n".join(requirements()))
        return 0
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    failed = build(folder)
    if failed:
        return failed
    lost = list(missing(described(folder)))
    print("\n".join(f"docs/api.md: nothing about {name}" for name in lost) or f"the site: {folder / 'index.html'}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
