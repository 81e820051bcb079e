"""Draws who includes whom in csrc, as mermaid text for docs/architecture.md.

    python tools/include_graph.py                the folders of csrc, the rooms of csrc/core among them
    python tools/include_graph.py core/pager     the files of one folder
    python tools/include_graph.py --check FILE   exit 1 where a drawing in FILE is not what would be drawn now

An arrow points from the one that includes to the one that is included. A .cpp and its .h are one box, and so are files
whose names go on with an underscore (runtime_api.cpp belongs to runtime.h). Arrows that follow from others are left
out: what is drawn is the stair, not every step of it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
Graph = dict[str, set[str]]


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".cpp", ".h"})


def included(path: Path) -> list[str]:
    """What a file includes of csrc, as paths below csrc."""
    names = re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)
    # Without a folder in its name a header stands beside the file.
    return [name if "/" in name else f"{path.parent.relative_to(CSRC)}/{name}" for name in names]


def room_of(name: str) -> str:
    return "/".join(Path(name).parts[:-1])


def folder_graph() -> Graph:
    graph: Graph = {}
    for path in sources(CSRC):
        room = room_of(str(path.relative_to(CSRC)))
        graph.setdefault(room, set()).update({room_of(name) for name in included(path)} - {room})
    return graph


def file_graph(folder: str) -> Graph:
    paths = [path for path in sources(CSRC / folder) if path.parent == CSRC / folder]
    headers = {path.stem for path in paths if path.suffix == ".h"}

    def box(stem: str) -> str:
        owners = [header for header in headers if stem == header or stem.startswith(f"{header}_")]
        return max(owners, key=len, default=stem)

    graph: Graph = {}
    for path in paths:
        here = {box(Path(name).stem) for name in included(path) if room_of(name) == folder}
        graph.setdefault(box(path.stem), set()).update(here - {box(path.stem)})
    return graph


def reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for other in graph.get(ahead.pop(), ()):
            if other not in seen:
                seen.add(other)
                ahead.append(other)
    return seen


def without_shortcuts(graph: Graph) -> Graph:
    """Only arrows that no other way replaces. In a circle nothing is left out: it must be seen."""
    reach = {node: reachable(graph, node) for node in graph}
    return {
        node: {
            other
            for other in others
            if (other in reach and node in reach[other])
            or not any(other in reach.get(third, ()) for third in others - {other})
        }
        for node, others in graph.items()
    }


def mermaid(graph: Graph) -> str:
    def name(node: str) -> str:
        return re.sub(r"\W", "_", node)

    lines = ["flowchart TD"]
    lines += [f'  {name(node)}["{node}"]' for node in sorted(graph)]
    drawn = without_shortcuts(graph)
    lines += [f"  {name(node)} --> {name(other)}" for node in sorted(drawn) for other in sorted(drawn[node])]
    return "\n".join(lines) + "\n"


def draw(folder: str) -> str:
    return mermaid(file_graph(folder) if folder else folder_graph())


def check(path: Path) -> int:
    """Drawings stand in FILE as ```mermaid blocks, each below a comment that names its folder."""
    blocks = re.findall(
        r"<!-- tools/include_graph\.py ?([\w/]*) -->\n```mermaid\n(.*?)```", path.read_text(), re.DOTALL
    )
    old = [folder or "csrc" for folder, text in blocks if text != draw(folder)]
    for folder in old:
        print(f"{path}: the drawing of {folder} is out of date: python tools/include_graph.py")
    if not blocks:
        print(f"{path}: holds no drawing below a comment <!-- tools/include_graph.py FOLDER -->")
    return 1 if old or not blocks else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="", help="below csrc; left out: the folders themselves")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare the drawings in FILE, write nothing")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check)
    if arguments.folder and not (CSRC / arguments.folder).is_dir():
        parser.error(f"csrc has no folder {arguments.folder}")
    sys.stdout.write(draw(arguments.folder.strip("/")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
