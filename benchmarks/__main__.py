"""Run the contenders, interleaved; print tables and ratios, and write them to benchmarks/results/."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contenders import ALL, DEFAULT, Contender
from benchmarks.machine import calibrate, describe, wait_quiet
from benchmarks.measure import HERE, JOBS, Bench, Row

WORKLOADS = ("enqueue", "bulk", "drain_a", "latency", "otp_isolation")
FULL = ("enqueue", "bulk", "drain_a", "drain_b", "io", "latency", "retry", "otp_isolation")
QUICK_JOBS = {
    "enqueue": 3_000, "bulk": 8_000, "drain": 10_000, "io": 400, "retry": 400, "latency": 150, "batch": 10_000,
}  # fmt: skip
QUICK_DRAIN = {"rq": 150, "dramatiq": 5_000, "huey": 4_000}
ONCE = frozenset({"latency", "otp_isolation"})
"""Measured once in a quick run: what they show is a distribution already."""


def main() -> int:
    """Exit code 0: measured; 1: a measurement failed; 6: a target was missed, and --check was given."""
    options = _options()
    venvs = Path(os.environ.get("BENCH_VENVS", "~/.cache/jobq-bench")).expanduser()
    names = options.only.split(",") if options.only else list(ALL if options.full else DEFAULT)
    workloads = (
        options.workloads.split(",") if options.workloads else list(FULL if options.full else WORKLOADS)
    )
    for name in names:
        if name not in ALL:
            sys.exit(f"no contender {name!r}; there are: {', '.join(ALL)}")
        if (venv := ALL[name].venv) and not (venvs / venv).is_dir():
            sys.exit(f"no {venv} under {venvs}: run benchmarks/setup.sh")
    for workload in workloads:
        if workload not in FULL:
            sys.exit(f"no workload {workload!r}; there are: {', '.join(FULL)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    bench = Bench(
        venvs=venvs,
        jobs=QUICK_JOBS if options.quick else JOBS,
        cap_s=5.0 if options.quick else 10.0,
        otp_s=10.0,
        aof=options.aof,
    )
    document: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "aof": options.aof,
        "rounds": options.rounds,
        "workloads": workloads,
        "machine": describe(bench.server, venvs, {v for n in names if (v := ALL[n].venv)}),
        "results": {},
    }
    try:
        _run(bench, document, names, options)
    finally:
        bench.close()
    document["targets"] = report.targets(document["results"])
    written = report.text(document)
    print(f"\n{written}")
    stem = document["started"][:10] + ("-quick" if options.quick else "")
    target = Path(options.out) if options.out else _unused(HERE / "results", stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")
    target.with_suffix(".md").write_text(written)
    print(f"written: {target} and {target.with_suffix('.md').name}")
    if any(
        "error" in row for w in document["results"].values() for measured in w.values() for row in measured
    ):
        return 1
    return 6 if options.check and not all(each["met"] for each in document["targets"]) else 0


def _unused(folder: Path, stem: str) -> Path:
    """A name that no earlier run of the day has taken."""
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1_000))]
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def _run(bench: Bench, document: dict[str, Any], names: list[str], options: argparse.Namespace) -> None:
    results: report.Results = document["results"]
    for turn in range(options.rounds):
        for workload in document["workloads"]:
            if options.quick and turn and workload in ONCE:
                continue
            for place in range(len(names)):
                # Each round starts with another one: what comes first after a pause may run on a faster clock.
                name = names[(turn + place) % len(names)]
                contender = _sized(name, quick=options.quick)
                if _concerns(name, contender, workload):
                    row = _measure(bench, workload, contender, options)
                    results.setdefault(name, {}).setdefault(workload, []).append(row)
                    _tell(name, workload, turn, row, bench)


def _sized(name: str, *, quick: bool) -> Contender:
    contender = ALL[name]
    if not quick:
        return contender
    jobs = {key: max(50, count // 4) for key, count in contender.jobs.items()}
    if name in QUICK_DRAIN:
        jobs["drain"] = QUICK_DRAIN[name]
    return Contender(**{**contender.__dict__, "jobs": jobs})


def _concerns(name: str, contender: Contender, workload: str) -> bool:
    if workload == "otp_isolation":
        return name == "jobq"  # the others have no lanes to compare
    return workload not in contender.skip and (workload != "bulk" or contender.bulk)


def _measure(bench: Bench, workload: str, contender: Contender, options: argparse.Namespace) -> Row:
    wait_quiet(1.0 if options.quick else 3.0)
    before, since = calibrate(), time.time()
    try:
        row = bench.measure(workload, contender)
    except Exception as error:  # a contender that breaks must not end the run
        row = {"error": f"{type(error).__name__}: {error}"}
    row["took_s"] = round(time.time() - since, 1)
    row["calibration_ms"] = (before + calibrate()) / 2
    return row


def _tell(name: str, workload: str, turn: int, row: Row, bench: Bench) -> None:
    key = next((each for each in ("error", "per_s", "call_p99_ms") if each in row), "")
    value = row.get(key)
    shown = f"{value:,.1f}" if isinstance(value, float) else value
    print(
        f"{name:15} {workload:14} round {turn + 1}  {row['took_s']:5.1f} s  {key} = {shown}"
        f"  (other cores {row.get('other_cpu', 0):.2f})",
        flush=True,
    )
    if "error" in row:
        print(bench.last_words(), file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs, two rounds; under two minutes")
    parser.add_argument(
        "--full", action="store_true", help="every contender ($BENCH_VENVS) and every workload"
    )
    parser.add_argument("--only", help=f"contenders, comma-separated: {', '.join(ALL)}")
    parser.add_argument("--workloads", help=f"comma-separated: {', '.join(FULL)}")
    parser.add_argument("--rounds", type=int, help="interleaved rounds; default 3, quick 2")
    parser.add_argument("--aof", action="store_true", help="append-only file, fsync each second")
    parser.add_argument("--check", action="store_true", help="exit with 6 when a target is missed")
    parser.add_argument("--out", help="the JSON file; default benchmarks/results/<date>.json")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
