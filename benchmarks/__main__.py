"""Run the contenders, interleaved; print tables, ratios and targets, and write them to benchmarks/results/."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import environments, growth, report, targets
from benchmarks.bench import HERE, Bench, Row
from benchmarks.contenders import ALL, TABLE
from benchmarks.machine import CONDITIONS, calibrate, describe, wait_quiet
from benchmarks.workloads import concerns, known, measure, split

WORKLOADS = (
    "enqueue", "bulk", "drain_a", "drain_b", "io", "retry", "latency", "otp_isolation", "five_lanes", "replay",
    "enqueue@512", "enqueue@everysec", "bulk@everysec", "drain_a@everysec", "drain_b@everysec", "retry@everysec",
    "io@everysec", "latency@everysec", "otp_isolation@everysec", "replay@everysec", "enqueue@2ms", "drain_a@2ms",
)  # fmt: skip
ONCE = frozenset({"five_lanes", "replay", "replay@everysec", "enqueue@512", "enqueue@2ms", "drain_a@2ms"})
"""Measured in the first round only: the figure hardly varies, or no target rests on it."""

ELSEWHERE = {
    "512": frozenset({"jobq", "rq"}),  # who keeps jobs in hashes that it makes smaller
    "everysec": frozenset({"jobq"}),
    "2ms": frozenset({"jobq", "bull", "dramatiq", "huey"}),
}
"""Who is measured in another condition, too; with --full everybody."""

FEWER = 5
"""One in so many jobs over a slow network, where each round trip takes ten times as long."""


def main() -> int:
    """Exit code 0: measured; 1: a measurement of jobq failed; 6: a target was missed, and --check was given."""
    options = _options()
    names = options.only.split(",") if options.only else list(ALL if options.full else TABLE)
    if options.growth:
        names = ["jobq"]
    absent = _prepare(names)
    if options.setup:
        return 0
    names = [name for name in names if ALL[name].venv not in absent]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    bench = Bench(cap_s=5.0 if options.quick else 10.0)
    document: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "rounds": options.rounds,
        "workloads": options.workloads,
        "machine": describe(bench.server, {venv for name in names if (venv := ALL[name].venv)}),
        "absent": absent,
        "results": {},
        "growth": {},
    }
    try:
        if options.growth:
            document["growth"] = growth.run(bench, divisor=100 if options.quick else 1)
        else:
            _run(bench, document, names, options)
    finally:
        bench.close()
    found = [*targets.reached(document["results"]), *growth.targets(document["growth"])]
    document["targets"] = report.as_json(found)
    _write(document, report.text(document, found), options)
    ours = [row for rows in document["results"].get("jobq", {}).values() for row in rows if row]
    if any("error" in row for row in [*ours, *document["growth"].values()]):
        return 1
    return 6 if options.check and not all(target.met for target in found) else 0


def _prepare(names: list[str]) -> dict[str, str]:
    """Make the environments; those that cannot be had, and why."""
    absent: dict[str, str] = {}
    for venv in sorted({venv for name in names if (venv := ALL[name].venv)}):
        why = environments.make(venv)
        if why:
            absent[venv] = why
            print(f"{venv}: absent, {why}", file=sys.stderr)
    return absent


def _run(bench: Bench, document: dict[str, Any], names: list[str], options: argparse.Namespace) -> None:
    since = time.time()
    for turn in range(options.rounds):
        for workload in options.workloads:
            for place in range(len(names)):
                # Each round starts with another one: what comes first after a pause may run on a faster clock.
                name = names[(turn + place) % len(names)]
                rows = document["results"].setdefault(name, {}).setdefault(workload, [])
                wanted = _wanted(name, workload, turn, options)
                rows.append(_measure(bench, workload, name, options) if wanted else {})
                if wanted:
                    _tell(bench, name, workload, turn, rows[-1], time.time() - since)


def _wanted(name: str, workload: str, turn: int, options: argparse.Namespace) -> bool:
    """Whether to measure this in this round: in the first all, then whom a target needs; with --full always."""
    _, condition = split(workload)
    if not concerns(name, workload):
        return False
    if condition and not (options.full or options.only or name in ELSEWHERE[condition]):
        return False
    if turn == 0 or options.only:
        return True
    return workload not in ONCE and (options.full or name in targets.rivals(workload))


def _measure(bench: Bench, workload: str, name: str, options: argparse.Namespace) -> Row:
    divisor = (20 if options.quick else 1) * (FEWER if CONDITIONS[split(workload)[1]].delay_ms else 1)
    contender = ALL[name].sized(divisor)
    wait_quiet(0.2 if options.quick else 3.0)
    before, since = calibrate(), time.time()
    try:
        row = measure(bench, workload, contender)
    except Exception as error:  # a contender that breaks must not end the run
        row = {"error": f"{type(error).__name__}: {error}"}
    row["took_s"] = round(time.time() - since, 1)
    row["calibration_ms"] = (before + calibrate()) / 2
    return row


def _tell(bench: Bench, name: str, workload: str, turn: int, row: Row, at_s: float) -> None:
    key = next((each for each in ("error", "per_s", "call_p99_ms", "idle_pss_mb") if each in row), "")
    value = row.get(key)
    shown = f"{value:,.1f}" if isinstance(value, float) else value
    print(
        f"{at_s:5.0f} s  {name:14} {workload:16} round {turn + 1}  {row['took_s']:5.1f} s  {key} = {shown}"
        f"  (other cores {row.get('other_cpu', 0):.2f})",
        flush=True,
    )
    if "error" in row:
        print(bench.last_words(), file=sys.stderr)


def _write(document: dict[str, Any], text: str, options: argparse.Namespace) -> None:
    print(f"\n{text}")
    stem = (
        document["started"][:10] + ("-growth" if options.growth else "") + ("-quick" if options.quick else "")
    )
    target = Path(options.out) if options.out else _unused(HERE / "results", stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")
    target.with_suffix(".md").write_text(text)
    print(f"written: {os.path.relpath(target)} and {target.with_suffix('.md').name}")


def _unused(folder: Path, stem: str) -> Path:
    """A name that no earlier run of the day has taken."""
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1_000))]
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--setup", action="store_true", help="only make the environments of the peers")
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of the jobs: shows only that all works"
    )
    parser.add_argument("--full", action="store_true", help="more contenders, and all of them in every round")
    parser.add_argument("--growth", action="store_true", help="costs that grow, instead of the comparison")
    parser.add_argument("--only", help=f"contenders, comma-separated: {', '.join(ALL)}")
    parser.add_argument("--workloads", help=f"comma-separated: {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, help="interleaved rounds; default 3, quick 1")
    parser.add_argument("--check", action="store_true", help="exit with 6 when a target is missed")
    parser.add_argument("--out", help="the JSON file; default benchmarks/results/<date>.json")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.workloads = options.workloads.split(",") if options.workloads else list(WORKLOADS)
    for name in (options.only or "jobq").split(","):
        if name not in ALL:
            parser.error(f"no contender {name!r}; there are: {', '.join(ALL)}")
    for workload in options.workloads:
        if not known(workload):
            parser.error(f"no workload {workload!r}; there are: {', '.join(WORKLOADS)}, and others with @")
    return options


if __name__ == "__main__":
    sys.exit(main())
