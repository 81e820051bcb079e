"""Runs the Python blocks of one page in their order, in this process: ``docs_worker.py PAGE FOLDER``.

What a page calls /data is FOLDER. A block that needs a library which is absent is skipped, and so is whatever needs its
names. Writes a line of JSON for each block as soon as its end is known: the block's name, "passed", "skipped" or
"failed", and a text.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from docs_pages import Block, blocks
from docs_stages import Absent, stage


def run(block: Block, names: dict[str, Any], folder: Path) -> tuple[str, str]:
    try:
        code = compile(block.text.replace("/data/", f"{folder}/"), block.name, "exec")
        if block.reason:
            return "skipped", f"compiled only: {block.reason}"
        with stage(block, names, folder):
            exec(code, names)
    except Absent as error:
        return "skipped", str(error)
    except Exception:
        return "failed", traceback.format_exc()
    return "passed", ""


def main() -> None:
    page, folder = sys.argv[1], Path(sys.argv[2])
    names: dict[str, Any] = {"__name__": "__main__"}
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what the pages print
        for block in blocks("python"):
            if block.page == page:
                print(json.dumps([block.name, *run(block, names, folder)]), file=answers, flush=True)


if __name__ == "__main__":
    main()
