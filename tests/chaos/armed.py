"""``python -m tests.chaos.armed worker …``: jobq's command line, its supervisor prepared by the application too.

A supervisor imports no application; here what the application wraps is to be wrapped there as well.
"""

from __future__ import annotations

import importlib
import os
import sys

from jobq.cli import main

if __name__ == "__main__":
    for name in os.environ["JOBQ_APP"].split(","):
        importlib.import_module(name)
    sys.exit(main())
