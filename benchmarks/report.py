"""Tables, ratios and targets of one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import ALL
from benchmarks.measure import Row

BUSY = 0.25
"""Cores used by anything else above which a measurement counts as disturbed."""

_TITLES = {
    "enqueue": "Enqueue, one at a time",
    "bulk": "Enqueue in bulk, 1,000 a call",
    "drain_a": "Drain of no-op jobs, one process of ten slots",
    "drain_b": "Drain of no-op jobs, two processes of ten slots",
    "io": "Jobs that sleep 10 ms, twenty slots",
    "latency": "From enqueue to start, idle worker",
    "retry": "Jobs that fail once, then succeed",
    "otp_isolation": "OTPs while exports fill `low` and 10,000 jobs wait in `batch`",
}
_PRODUCE = (
    ("jobs/s", "per_s", 0),
    ("commands/job", "cmds_per_job", 1),
    ("reads/job", "reads_per_job", 2),
    ("Redis µs/job", "redis_us_per_job", 0),
    ("bytes/job", "bytes_per_job", 0),
    ("other cores", "other_cpu", 2),
)
_DRAIN = (
    ("jobs/s", "per_s", 0),
    ("worker cores", "worker_cores", 2),
    ("Redis cores", "redis_cores", 2),
    ("worker µs/job", "worker_us_per_job", 0),
    ("Redis µs/job", "redis_us_per_job", 0),
    ("commands/job", "cmds_per_job", 1),
    ("reads/job", "reads_per_job", 2),
    ("PSS MB", "pss_mb", 0),
    ("other cores", "other_cpu", 2),
)
_COLUMNS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "enqueue": _PRODUCE,
    "bulk": _PRODUCE,
    "drain_a": _DRAIN,
    "drain_b": _DRAIN,
    "io": (("time / ideal", "ratio", 2), *_DRAIN),
    "retry": _DRAIN,
    "latency": (
        ("from return p50 ms", "p50_ms", 2),
        ("p99", "p99_ms", 2),
        ("from call p50 ms", "call_p50_ms", 2),
        ("p99", "call_p99_ms", 2),
        ("idle CPU %", "idle_cpu_pct", 1),
        ("idle Redis %", "idle_redis_pct", 1),
        ("idle PSS MB", "idle_pss_mb", 0),
        ("other cores", "other_cpu", 2),
    ),
    "otp_isolation": (
        ("from call p50 ms", "call_p50_ms", 2),
        ("p99", "call_p99_ms", 2),
        ("max", "call_max_ms", 1),
        ("batch jobs/s", "batch_per_s", 0),
        ("batch left", "batch_left", 0),
        ("`low` running", "low_running", 0),
        ("worker cores", "worker_cores", 2),
        ("other cores", "other_cpu", 2),
    ),
}
_TARGETS = (
    ("drain_a", "per_s", "rq", 50.0),
    ("drain_a", "per_s", "dramatiq", 2.0),
    ("enqueue", "per_s", "rq", 2.0),
    ("bulk", "per_s", "rq", 3.5),
)
_OTP_P99_MS = 100.0

Results = dict[str, dict[str, list[Row]]]
"""Rows by contender and workload."""


def rows(results: Results, name: str, workload: str) -> list[Row]:
    """What was measured."""
    return [row for row in results.get(name, {}).get(workload, []) if "error" not in row]


def median(results: Results, name: str, workload: str, key: str) -> float | None:
    values = [row[key] for row in rows(results, name, workload) if row.get(key) is not None]
    return statistics.median(values) if values else None


def pairs(results: Results, workload: str, other: str) -> list[tuple[Row, Row]]:
    """jobq's and another's rows of the same round: those where nothing else ran, or all when there are none."""
    ours, theirs = results.get("jobq", {}).get(workload, []), results.get(other, {}).get(workload, [])
    # Without strict: a run may have been cut short. Never one's quiet row beside the other's disturbed one.
    both = [(a, b) for a, b in zip(ours, theirs, strict=False) if "error" not in a and "error" not in b]
    return [pair for pair in both if max(row["other_cpu"] for row in pair) <= BUSY] or both


def ratio(results: Results, workload: str, key: str, other: str) -> float | None:
    """jobq over another: the median of the rounds' ratios."""
    found = [a[key] / b[key] for a, b in pairs(results, workload, other) if a.get(key) and b.get(key)]
    return statistics.median(found) if found else None


def targets(results: Results) -> list[dict[str, Any]]:
    """Each target with what was reached; targets of workloads that did not run are left out."""
    found: list[dict[str, Any]] = []
    for workload, key, other, least in _TARGETS:
        reached = ratio(results, workload, key, other)
        if reached is not None:
            each = [a[key] / b[key] for a, b in pairs(results, workload, other)]
            title = f"{_TITLES[workload]}: jobq / {other} ({min(each):,.1f}-{max(each):,.1f})"
            found.append(
                {
                    "what": title,
                    "target": f">= {least:g}",
                    "reached": round(reached, 2),
                    "met": reached >= least,
                }
            )
    p99 = median(results, "jobq", "otp_isolation", "call_p99_ms")
    if p99 is not None:
        title = "OTP wait p99 under load, ms"
        found.append(
            {
                "what": title,
                "target": f"< {_OTP_P99_MS:g}",
                "reached": round(p99, 1),
                "met": p99 < _OTP_P99_MS,
            }
        )
    return found


def remarks(results: Results) -> list[str]:
    """What makes a row doubtful."""
    found = []
    for name, workloads in results.items():
        for workload, measured in workloads.items():
            where = f"{name} / {workload}"
            disturbed = sum(row.get("other_cpu", 0.0) > BUSY for row in measured)
            found += [f"{where}: {row['error']}" for row in measured if "error" in row]
            if disturbed:
                found.append(
                    f"{where}: {disturbed} of {len(measured)} with more than {BUSY} cores busy elsewhere"
                )
            for row in measured:
                if row.get("complete") is False:
                    found.append(f"{where}: cut off with {row['jobs']} jobs done")
                if row.get("repeated"):
                    found.append(f"{where}: {row['repeated']} jobs ran more than once")
                if row.get("left"):
                    found.append(
                        f"{where}: {row['left']} jobs not finished for the library, ten seconds later"
                    )
                if row.get("missing"):
                    found.append(f"{where}: {row['missing']} jobs did not start")
    return found


def _show(results: Results, name: str, workload: str, key: str, digits: int) -> str:
    values = [row[key] for row in rows(results, name, workload) if row.get(key) is not None]
    if not values:
        return "-"
    text = f"{statistics.median(values):,.{digits}f}"
    if len(values) > 1 and key == "per_s":
        text += f" ({min(values):,.{digits}f}-{max(values):,.{digits}f})"
    return text


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return [line(head), rule, *(line(cells) for cells in body)]


def text(document: dict[str, Any]) -> str:
    """The whole report, as Markdown."""
    results: Results = document["results"]
    machine = document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    out = [
        f"# Benchmark of {document['started']}",
        "",
        f"{machine['cores']} cores ({machine['model']}), {machine['memory_gb']} GB, {machine['system']}; {versions}.",
        f"Append-only file: {'everysec' if document['aof'] else 'off'}.",
        f"Medians of {document['rounds']} interleaved rounds (lowest-highest). Compare only within this run.",
    ]
    for workload in document["workloads"]:
        columns = _COLUMNS[workload]
        key = columns[0][1]
        names = [name for name in ALL if rows(results, name, workload)]
        if not names:
            continue
        speed = key == "per_s"
        names.sort(key=lambda name: (median(results, name, workload, key) or 0.0) * (-1 if speed else 1))
        body = []
        for name in names:
            cells = [name, *(_show(results, name, workload, each, digits) for _, each, digits in columns)]
            if speed:
                factor = ratio(results, workload, key, name)
                cells.insert(2, f"{factor:,.1f}" if factor and name != "jobq" else "")
            body.append(cells)
        head = ["contender", *(title for title, _, _ in columns)]
        if speed:
            head.insert(2, "jobq / it")
        out += ["", f"## {_TITLES[workload]}", "", *_table(head, body)]
    reached = targets(results)
    if reached:
        body = [
            [t["what"], t["target"], f"{t['reached']:,.1f}", "met" if t["met"] else "MISSED"] for t in reached
        ]
        out += ["", "## Targets", "", *_table(["target", "wanted", "reached", ""], body)]
    calibration = [row["calibration_ms"] for w in results.values() for m in w.values() for row in m]
    if calibration:
        low, high = min(calibration), max(calibration)
        out += [
            "",
            f"A fixed loop took {low:.1f} to {high:.1f} ms between measurements: so much the host's speed varied.",
        ]
    doubts = remarks(results)
    if doubts:
        out += ["", "## Doubtful", "", *(f"- {each}" for each in doubts)]
    return "\n".join(out) + "\n"
