"""``python -m jobq.cli``: the same as the installed ``jobq``."""

from __future__ import annotations

import sys

from jobq.cli import main

if __name__ == "__main__":
    sys.exit(main())
