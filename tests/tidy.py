"""Repository rules that no compiler checks. Prints one line per finding; exit code 1 if there is any."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
LINE_COLUMNS_MAX = 120
SOURCES = ("csrc", "python", "tests", "bench", "tools", "docs", ".ci", ".github", "third_party")
SUFFIXES = {".cpp", ".h", ".py", ".md", ".sh", ".yml", ".toml", ".txt", ".cmake", ".pyi", ""}
# Names of folders that only exist on one machine. Split, so that this file does not find itself.
MACHINE_PATHS = re.compile("|".join((r"/wo" r"rk/", r"/ro" r"ot/", r"/ho" r"me/\w", r"/Us" r"ers/\w")))
PURE_FORBIDDEN = re.compile(r"#include <(thread|chrono|iostream|mutex|condition_variable|future|atomic|random|ctime)>")
# Rooms of csrc/core, from the ground up: each includes itself and what lies below.
CORE_ROOMS = ("model", "future", "pager")
CLASS_FUNCTIONS_MAX = 60
CLASS_FIELDS_MAX = 40
# Classes that are larger, as (functions, fields): they may shrink, and this list with them, but not grow.
LARGE_CLASSES: dict[str, tuple[int, int]] = {}
UNORDERED_LOOP = re.compile(r"for \([^;)]*:\s*(\w*unordered\w*|\w+_(?:map|set)_unordered)")


def files() -> Iterator[Path]:
    """Text files of the repository that these rules are about."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in SUFFIXES - {""})


def without_text(line: str) -> str:
    """A line of C++ without string and character literals and line comments."""
    line = re.sub(r'"(?:\\.|[^"\\])*"', '""', line)
    line = re.sub(r"'(?:\\.|[^'\\])'", "' '", line)
    return line.partition("//")[0]


def long_functions(text: str) -> Iterator[tuple[int, int]]:
    """(first line, lines) of each brace block that follows a closing parenthesis outside of functions."""
    stack: list[tuple[bool, int]] = []
    inside = 0
    previous = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = without_text(raw)
        for position, character in enumerate(line):
            if character == "{":
                head = (previous + " " + line[:position]).strip()
                kind = re.search(r"\b(namespace|struct|class|enum|union|extern)\b[^()]*$", head) is None
                is_function = kind and inside == 0 and re.search(r"\)[\w\s:&<>,]*$|\)\s*:.*$", head) is not None
                stack.append((is_function, number))
                inside += is_function
            elif character == "}" and stack:
                is_function, first = stack.pop()
                if is_function:
                    inside -= 1
                    yield first, number - first + 1
        if line.strip():
            previous = line.strip()


def python_functions(text: str) -> Iterator[tuple[int, int]]:
    """(first line, lines) of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.lineno, node.end_lineno - node.lineno + 1


def check_sizes() -> Iterator[str]:
    for path in files():
        if path.suffix not in {".cpp", ".h", ".py"}:
            continue
        text = path.read_text()
        count = len(text.splitlines())
        if count > FILE_LINES_MAX:
            yield f"{path.relative_to(ROOT)}: {count} lines, at most {FILE_LINES_MAX}"
        for first, lines in python_functions(text) if path.suffix == ".py" else long_functions(text):
            if lines > FUNCTION_LINES_MAX:
                yield f"{path.relative_to(ROOT)}:{first}: function of {lines} lines, at most {FUNCTION_LINES_MAX}"


def check_core() -> Iterator[str]:
    """csrc/core is pure: standard headers and its own, no threads, clocks, output, and no order that hashing decides."""
    for path in sorted((ROOT / "csrc" / "core").rglob("*.*")):
        room = path.relative_to(ROOT / "csrc" / "core").parts[0]
        if room not in CORE_ROOMS:
            yield f"{path.relative_to(ROOT)}: stands in no room of {', '.join(CORE_ROOMS)}"
            continue
        above = CORE_ROOMS[CORE_ROOMS.index(room) + 1 :]
        text = path.read_text()
        unordered = set(re.findall(r"unordered_(?:map|set)<[^;]*>\s+(\w+)\s*[;{=]", text))
        for number, line in enumerate(text.splitlines(), start=1):
            where = f"{path.relative_to(ROOT)}:{number}"
            if PURE_FORBIDDEN.search(line):
                yield f"{where}: the core must not use {line.strip()}"
            quoted = re.match(r'#include "([^"]+)"', line)
            if quoted and not quoted[1].startswith("core/"):
                yield f"{where}: the core must not include {quoted[1]}"
            if quoted and quoted[1].split("/")[1] in above:
                yield f"{where}: core/{room} must not include {quoted[1]}, which lies above it"
            angled = re.match(r"#include <([^>]+)>", line)
            if angled and ("/" in angled[1] or "." in angled[1]):
                yield f"{where}: the core includes standard C++ headers only, not {angled[1]}"
            loop = re.search(r"for \([^;]*:\s*([\w.>-]+)\)", line)
            if loop and re.split(r"\.|->", loop[1])[-1] in unordered:
                yield f"{where}: iteration over the unordered container {loop[1]}"


def class_members(text: str) -> Iterator[tuple[str, int, int]]:
    """(class, member functions, fields) of each class or struct in a header, by the shape of its declarations.

    Not measured: what a macro declares, and whether a class does its work through others that only it knows, which is
    what a rule about size would really like to know. Overloads count one by one, defaulted and deleted ones too; static
    constants, types and friends do not count; a class within a class counts for itself alone.
    """
    text = "\n".join(without_text(line) for line in text.splitlines() if not line.startswith("#"))
    for found in re.finditer(r"\b(?:class|struct)\s+(?:TP_\w+\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)[^;{}()=]*\{", text):
        functions = fields = depth = 0
        statement = ""
        for character in text[found.end() :]:
            if character == "{":
                depth += 1
                statement += "{" if depth == 1 else ""
            elif character == "}" and depth == 0:
                break
            elif character == "}":
                depth -= 1
            elif depth == 0:
                statement += character
            # A brace ends a body, but not an initialiser: `int a{0};`, `Row rows[2] = {};`, `struct Row {...} row;`
            body_ends = (
                character == "}"
                and depth == 0
                and re.search(r"\)[\w\s&]*\{$|\)\s*(?:noexcept)?\s*:.*\{$", statement, re.DOTALL)
            )
            if depth == 0 and (character == ";" or body_ends):
                kind = member_kind(statement)
                functions += kind == "function"
                fields += kind == "field"
                statement = ""
        yield found[1], functions, fields


def member_kind(statement: str) -> str:
    """ "function", "field" or "" for one declaration of a class."""
    statement = re.sub(
        r"\b(?:public|protected|private)\s*:|\[\[\w+\]\]|\b(?:TP_|C10_)\w+\((?:[^()]|\([^()]*\))*\)", " ", statement
    )
    while re.search(r"<[^<>]*>", statement):
        statement = re.sub(r"<[^<>]*>", " ", statement)
    statement = " ".join(statement.split())
    if re.match(
        r"(?:using|friend|typedef|enum|struct|class|static constexpr|static_assert|template class)\b|;|$", statement
    ):
        return ""
    before = re.split(r"[={;]", re.sub(r"operator\s*\S+?\(", "operator(", statement))[0]
    if "(" not in before or before.split("(")[1].lstrip().startswith("*"):
        return "field"
    return "function"


def check_classes() -> Iterator[str]:
    for path in sorted((ROOT / "csrc").rglob("*.h")):
        for name, functions, fields in class_members(path.read_text()):
            most = LARGE_CLASSES.get(name, (CLASS_FUNCTIONS_MAX, CLASS_FIELDS_MAX))
            if functions > most[0] or fields > most[1]:
                yield (
                    f"{path.relative_to(ROOT)}: {name} has {functions} member functions and {fields} fields, "
                    f"at most {most[0]} and {most[1]}"
                )


def check_one_thread() -> Iterator[str]:
    """Tests of the pure part have one thread, which is why run.sh does not run them under the thread sanitizer."""
    for folder in ("core", "sim"):
        for path in sorted((ROOT / "tests" / folder).glob("*.*")):
            if re.search(r"std::j?thread|std::async|pthread_create|\bfork\(", path.read_text()):
                yield f"{path.relative_to(ROOT)}: starts a thread, and tests/{folder} are not run under a thread sanitizer"


def include_circle(graph: dict[str, set[str]]) -> list[str]:
    """A path of rooms that ends where it begins, or nothing."""
    done: set[str] = set()

    def search(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room in done:
            return []
        for other in sorted(graph.get(room, ())):
            if circle := search(other, [*path, room]):
                return circle
        done.add(room)
        return []

    return next((circle for room in sorted(graph) if (circle := search(room, []))), [])


def check_circles() -> Iterator[str]:
    """The rooms of a folder, each a .cpp with its .h, form a stair: one can be read, changed and tested after another."""
    for folder in sorted(path for path in (ROOT / "csrc").iterdir() if path.is_dir()):
        graph: dict[str, set[str]] = {}
        for path in sorted(folder.glob("*.*")):
            included = re.findall(rf'^#include "(?:{folder.name}/)?(\w+)\.h"', path.read_text(), re.MULTILINE)
            graph.setdefault(path.stem, set()).update(set(included) - {path.stem})
        if circle := include_circle(graph):
            yield f"csrc/{folder.name}: files include each other in a circle: {' -> '.join(circle)}"


# A page's row, by the names that the code gives it, and the fields of it that change.
_ROW = r"(?:\bpage|pages\[[^\]]*\])"
_ROW_FIELDS = (
    "valid|mapped|sourced|movement|leaving|evict_asked|wrote_back|referenced|prefetched|cleanable|listed|hinted|pins|"
    "region|frame|claim|movement_serial|lower|arrival"
)
ROW_WRITTEN = re.compile(
    rf"{_ROW}\.(?:{_ROW_FIELDS})\s*(?:=(?!=)|[|&+-]=|\+\+|--)|(?:\+\+|--)[\w.\[\]]*{_ROW}\.(?:{_ROW_FIELDS})\b"
    rf"|exchange\([\w.\[\]]*{_ROW}\.(?:{_ROW_FIELDS})\b"
)


def check_rows() -> Iterator[str]:
    """A page's row is written by its own functions. Seen are writes through names as `page` and `pages[...]`, no others."""
    for path in sorted((ROOT / "csrc" / "core" / "pager").glob("*.*")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if ROW_WRITTEN.search(without_text(line)):
                yield f"{path.relative_to(ROOT)}:{number}: writes a page's row; page_table.h has the functions for it"


def check_synchronisation() -> Iterator[str]:
    """Nobody waits for a whole device or context, which would stop every stream; only a backend that is taken down does."""
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            in_destructor = any("::~CudaBackend" in above for above in lines[max(0, number - 12) : number])
            # One stream of our own: after a copy or a launch that failed half-way, and at its end.
            own_stream = re.search(r"driver_\.stream_synchronize\((direction\.|lane\.)?stream\)", line) is not None
            if re.search(r"(cuda?|ctx_|device_|stream_)\w*[sS]ynchronize\(", line) and not (
                in_destructor or own_stream
            ):
                yield f"{path.relative_to(ROOT)}:{number}: waits for the whole device"


BARE_LOCK = re.compile(r"\bstd::(?:\w+_)?mutex\b|\bstd::condition_variable|\bpthread_mutex_t\b|\batomic_flag\b")
# Locks that are no csrc/locks/mutex.h, and why.
BARE_LOCKS = {
    "csrc/engine/signal_chain.cpp": "in a child that is forked meanwhile it stays taken, which nobody may wait for",
    "csrc/torch/raw_access.cpp": "one for each of many storages, held for the change of one field",
}


def check_locks() -> Iterator[str]:
    """Every lock has a rank, and the table of locks in docs/architecture.md has all of them in the order of ranks."""
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        name = str(path.relative_to(ROOT))
        if name.startswith("csrc/locks/") or name in BARE_LOCKS:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if BARE_LOCK.search(without_text(line)):
                yield f"{name}:{number}: a lock without a rank; csrc/locks/mutex.h has those with one"
    ranks = (ROOT / "csrc" / "locks" / "lock_rank.h").read_text()
    listed = re.findall(r'\bLOCK\(k\w+, "([^"]+)"\)', ranks)
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(
        r"^\| `([^`]+)`", text[text.index("## Locks") : text.index("## Life of an operator")], re.MULTILINE
    )
    if [row for row in rows if row != "_lock"] != listed:
        yield "docs/architecture.md: the table of locks is not the list in csrc/locks/lock_rank.h"


def check_map() -> Iterator[str]:
    """The map of files in docs/architecture.md names every file of csrc and of the package, examples apart."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`(\w+)(?:\.h)?`", text[text.index("## Files by folder") : text.index("## The core")]))
    sources = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "python").rglob("*.py")]
    for path in sorted(sources):
        if path.stem not in named and not path.stem.startswith("__") and "examples" not in path.parts:
            yield f"docs/architecture.md: the files by folder lack {path.relative_to(ROOT)}"


def check_settings() -> Iterator[str]:
    """Every setting has a section in docs/tuning.md, and every section a setting."""
    text = (ROOT / "python" / "tierpage" / "settings.py").read_text()
    table = text[text.index("SETTINGS: dict") : text.index("def _close")]
    settings = set(re.findall(r'^    "(\w+)":', table, re.MULTILINE))
    sections = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "tuning.md").read_text(), re.MULTILINE))
    for name in sorted(settings - sections):
        yield f"docs/tuning.md: no section for the setting {name}"
    for name in sorted(sections - settings):
        yield f"docs/tuning.md: section {name} is no setting"


def check_paths() -> Iterator[str]:
    for path in files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if MACHINE_PATHS.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: names a folder of one machine"


def check_columns() -> Iterator[str]:
    """Of C++, whose formatter leaves comments alone, and of prose in docs: tables, blocks and addresses cannot be broken."""
    for path in files():
        if path.suffix not in (".cpp", ".h", ".md") or "notes" in path.parts:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            fixed = path.suffix == ".md" and re.match(r"\s*[|`#<!]|\s*\S+$", line)
            if len(line) > LINE_COLUMNS_MAX and not fixed:
                yield f"{path.relative_to(ROOT)}:{number}: {len(line)} columns, at most {LINE_COLUMNS_MAX}"


def check_package() -> Iterator[str]:
    for name in ("python/tierpage/py.typed", "LICENSE", "CHANGELOG.md", "README.md"):
        if not (ROOT / name).is_file():
            yield f"{name} is missing"


def main() -> int:
    checks = (
        check_sizes,
        check_classes,
        check_core,
        check_rows,
        check_one_thread,
        check_circles,
        check_synchronisation,
        check_locks,
        check_map,
        check_settings,
        check_paths,
        check_columns,
        check_package,
    )
    findings = [line for check in checks for line in check()]
    print("\n".join(findings) if findings else "tidy: nothing found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
