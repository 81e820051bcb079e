"""Rewrites a recorded program as tierpage runs it: fused optimizer updates where their tensors are next used.

python bench/record_program.py train-3b -o train-3b.txt
python bench/deferred_program.py train-3b.txt -o train-3b-deferred.txt
replay_bench train-3b-deferred.txt --device 16 --host 200
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tierpage._estimate.deferral import deferred


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        arguments.output.write_text(deferred(arguments.program.read_text()))
    except (OSError, ValueError, KeyError, IndexError) as error:
        print(f"{arguments.program}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
