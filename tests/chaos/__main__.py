"""``python -m tests.chaos``: run experiments, print a line each, and publish the table."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos import publish
from tests.chaos.frame import Setup, experiments, perform


def main() -> int:
    """Exit code 1 when an experiment did not pass."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Break jobq and see what it loses."
    )
    parser.add_argument("ids", nargs="*", metavar="FI-xx", help="experiments to run; none: all")
    parser.add_argument("--short", action="store_true", help="the form of the tests: a lease of 1 s")
    parser.add_argument("--gate", action="store_true", help="only those that block a merge")
    parser.add_argument(
        "--effort", type=float, default=1.0, help="share of the repetitions, 0 to 1; default 1"
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat a run's choices")
    parser.add_argument("--publish", action="store_true", help=f"write the rows into {publish.PAGE.name}")
    parser.add_argument("--list", action="store_true", help="only list them")
    chosen = parser.parse_args()
    known = experiments()
    if unknown := sorted(set(chosen.ids) - known.keys()):
        parser.error(f"no such experiment: {', '.join(unknown)}; --list shows them")
    wanted = [
        e for id_, e in known.items() if (not chosen.ids or id_ in chosen.ids) and (e.gate or not chosen.gate)
    ]
    if chosen.list:
        for each in wanted:
            sys.stdout.write(
                f"{each.id}  {each.minutes:5.1f} min  {'gate' if each.gate else '    '}  {each.fault}\n"
            )
        return 0
    failed = []
    for each in wanted:
        seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1_000_000)
        with tempfile.TemporaryDirectory(prefix=f"jobq-{each.id}-") as folder:
            setup = Setup(folder=Path(folder), seed=seed, short=chosen.short, effort=chosen.effort)
            report, took_s = perform(each, setup)
        word = "FAILED" if report.problems else "passed"
        line = {"id": each.id, "verdict": word, "seed": seed, "took_s": round(took_s, 1), **asdict(report)}
        sys.stdout.write(json.dumps(line, default=str) + "\n")
        sys.stdout.flush()
        if report.problems:
            failed.append(each.id)
        if chosen.publish:
            publish.publish(each, setup, report, took_s)
    sys.stderr.write(f"{len(wanted) - len(failed)} of {len(wanted)} passed\n")
    if failed:
        sys.stderr.write(f"not as promised: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
