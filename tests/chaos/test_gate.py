"""The short forms of the experiments that block a merge."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from tests.chaos.frame import Setup, experiments, perform

GATE = [each for each in experiments().values() if each.gate]


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.parametrize("each", GATE, ids=lambda each: each.id)
def test_short_form(each, tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    report, _ = perform(each, Setup(folder=tmp_path, seed=seed, short=True))
    sys.stdout.write(json.dumps({"seed": seed, **report.figures}, default=str))
    assert report.problems == [], f"seed {seed}: {report.figures}"
