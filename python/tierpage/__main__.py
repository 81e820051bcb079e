"""``python -m tierpage``: the same as the command ``tierpage``."""

import sys

from tierpage.cli import main

sys.exit(main())
