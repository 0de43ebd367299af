"""An application that a deploy can break: by the words in the file that ``DEPLOY`` names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import jobq
from tests.process.ledger_app import trace

deploy = Path(os.environ["DEPLOY"]).read_text().split()
trace("import", "-".join(deploy) or "-")
if "broken" in deploy:
    raise RuntimeError("broken deploy")
if "threads" in deploy:  # so that nothing can be forked from it
    threading.Thread(target=threading.Event().wait, daemon=True).start()


@jobq.task("t.deployed", priority="batch")
def deployed(key: str) -> None:
    trace("ran", key)
