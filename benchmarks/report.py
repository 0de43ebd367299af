"""Tables, ratios and targets of one run, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.bench import Row
from benchmarks.contenders import ALL
from benchmarks.machine import CONDITIONS
from benchmarks.targets import BUSY, Results, Target, median, quiet, ratios, rows
from benchmarks.workloads import split

_TITLES = {
    "enqueue": "Enqueue, one at a time",
    "bulk": "Enqueue in bulk, 1,000 a call",
    "drain_a": "Drain of no-op jobs, one process of ten slots",
    "drain_b": "Drain of no-op jobs, two processes of ten slots",
    "io": "Jobs that sleep 10 ms, twenty slots",
    "latency": "From enqueue to start, idle worker",
    "retry": "Jobs that fail once, then succeed",
    "otp_isolation": "OTPs while exports fill `low` and 10,000 jobs wait in `batch`",
    "five_lanes": "Idle worker of all five lanes",
    "replay": "Retry-failed of 100,000 dead letters",
}
_Columns = tuple[tuple[str, str, int], ...]
_OTHER = ("other cores", "other_cpu", 2)
_PRODUCE: _Columns = (
    ("jobs/s", "per_s", 0),
    ("commands/job", "cmds_per_job", 1),
    ("reads/job", "reads_per_job", 2),
    ("Redis µs/job", "redis_us_per_job", 0),
    _OTHER,
)
_DRAIN: _Columns = (
    ("jobs/s", "per_s", 0),
    ("worker cores", "worker_cores", 2),
    ("Redis cores", "redis_cores", 2),
    ("worker µs/job", "worker_us_per_job", 0),
    ("Redis µs/job", "redis_us_per_job", 0),
    ("commands/job", "cmds_per_job", 1),
    ("reads/job", "reads_per_job", 2),
    ("start to first job s", "startup_s", 2),
    ("PSS MB", "pss_mb", 0),
    _OTHER,
)
_COLUMNS: Mapping[str, _Columns] = {
    "enqueue": (*_PRODUCE[:-1], ("bytes/job", "bytes_per_job", 0), _OTHER),
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
        _OTHER,
    ),
    "otp_isolation": (
        ("from call p50 ms", "call_p50_ms", 2),
        ("p99", "call_p99_ms", 2),
        ("max", "call_max_ms", 1),
        ("batch jobs/s", "batch_per_s", 0),
        ("batch left", "batch_left", 0),
        ("`low` running", "low_running", 0),
        ("worker cores", "worker_cores", 2),
        _OTHER,
    ),
    "five_lanes": (
        ("idle PSS MB", "idle_pss_mb", 0),
        ("idle CPU %", "idle_cpu_pct", 1),
        ("idle Redis %", "idle_redis_pct", 1),
        _OTHER,
    ),
    "replay": (("jobs/s", "per_s", 0), ("Redis µs/job", "redis_us_per_job", 0), _OTHER),
}
# The columns of the first table: heading, and the workload, key and digits of each number in it.
_OVERVIEW: tuple[tuple[str, tuple[tuple[str, str, int], ...]], ...] = (
    ("enqueue one by one / in bulk, per s", (("enqueue", "per_s", 0), ("bulk", "per_s", 0))),
    (
        "bytes per waiting job, default / 512",
        (("enqueue", "bytes_per_job", 0), ("enqueue@512", "bytes_per_job", 0)),
    ),
    ("drain, 1 × 10 slots, per s", (("drain_a", "per_s", 0),)),
    ("drain, 2 × 10, per s", (("drain_b", "per_s", 0),)),
    (
        "Redis commands / socket reads per job",
        (("drain_a", "cmds_per_job", 1), ("drain_a", "reads_per_job", 2)),
    ),
    ("worker / Redis µs per job", (("drain_a", "worker_us_per_job", 0), ("drain_a", "redis_us_per_job", 0))),
    ("10 ms sleeps, time / ideal", (("io", "ratio", 2),)),
    ("wait p50 / p99 ms, idle worker", (("latency", "p50_ms", 2), ("latency", "p99_ms", 2))),
    ("fail once, then succeed, per s", (("retry", "per_s", 0),)),
    ("idle PSS MB", (("latency", "idle_pss_mb", 0),)),
)
_GROWTH_TITLES = {
    "waiting": "Jobs waiting",
    "delayed": "Jobs due within one second",
    "dead": "Dead letters",
    "recurring": "Schedules due at the same second",
}


def as_json(targets: Iterable[Target]) -> list[dict[str, Any]]:
    """The targets, as the JSON file keeps them."""
    return [asdict(target) | {"met": target.met} for target in targets]


def text(document: Mapping[str, Any], targets: Sequence[Target]) -> str:
    """The whole report."""
    results: Results = document["results"]
    out = [*_head(document), *_targets(targets)]
    if results:
        out += _overview(results)
        for workload in document["workloads"]:
            out += _section(results, workload)
    for name, row in document["growth"].items():
        out += _growth(name, row)
    out += _doubts(document, results)
    return "\n".join(out) + "\n"


def _head(document: Mapping[str, Any]) -> list[str]:
    machine = document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    out = [
        f"# Benchmark of {document['started']}",
        "",
        f"{machine['cores']} cores ({machine['model']}), {machine['memory_gb']} GB, {machine['system']}; {versions}.",
    ]
    peers = [
        f"{name} ({', '.join(f'{package} {number}' for package, number in found.items())})"
        for name, found in machine["peers"].items()
    ]
    if peers:
        out.append(f"Peers with an environment of their own: {'; '.join(peers)}.")
    out += [f"Not measured: {name} ({why})." for name, why in document["absent"].items()]
    if document["quick"]:
        out.append("**A quick run: too few jobs for its figures to mean anything.**")
    if document["results"]:
        out.append(
            f"Medians of {document['rounds']} interleaved rounds (lowest-highest), of the undisturbed ones as long as"
            " there is one; marked * when there is none. Compare only within this run."
        )
    return out


def _targets(targets: Sequence[Target]) -> list[str]:
    if not targets:
        return []
    body = []
    for target in targets:
        low, high = target.spread or (target.reached, target.reached)
        spread = f"{_number(low)}-{_number(high)}" if low != high else ""
        verdict = ("met" if target.met else "MISSED") + (" *" if target.disturbed else "")
        body.append(
            [target.what, f"{target.sign} {_number(target.limit)}", _number(target.reached), spread, verdict]
        )
    missed = sum(not target.met for target in targets)
    return [
        "",
        f"## Targets: {len(targets) - missed} of {len(targets)} met",
        "",
        *_table(["target", "wanted", "reached", "rounds", ""], body),
        *(f"\n- **{target.what}**: {target.why}" for target in targets if target.why),
    ]


def _overview(results: Results) -> list[str]:
    body = []
    for name in ALL:
        if any(row for measured in results.get(name, {}).values() for row in measured):
            cells = [" / ".join(_cell(results, name, *each) for each in parts) for _, parts in _OVERVIEW]
            body.append([name, *cells])
    return ["", "## All", "", *_table(["system", *(title for title, _ in _OVERVIEW)], body)]


def _cell(results: Results, name: str, workload: str, key: str, digits: int) -> str:
    value = median(results, name, workload, key)
    return "-" if value is None else f"{value:,.{digits}f}{_star(results, name, workload)}"


def _star(results: Results, name: str, workload: str) -> str:
    return "" if any(map(quiet, rows(results, name, workload))) else "*"


def _section(results: Results, workload: str) -> list[str]:
    kind, condition = split(workload)
    columns = _COLUMNS[kind]
    key = columns[0][1]
    names = [name for name in ALL if rows(results, name, workload)]
    if not names:
        return []
    speed = key == "per_s"
    names.sort(key=lambda name: (median(results, name, workload, key) or 0.0) * (-1 if speed else 1))
    compared = speed and len(names) > 1
    body = []
    for name in names:
        cells = [name, *(_ranged(results, name, workload, each, digits) for _, each, digits in columns)]
        if compared:
            found = ratios(results, workload, name, workload) if name != "jobq" else []
            cells.insert(2, f"{statistics.median(found):,.2f}" if found else "")
        body.append(cells)
    head = ["contender", *(title for title, _, _ in columns)]
    if compared:
        head.insert(2, "jobq / it")
    title = _TITLES[kind] + (f"; {CONDITIONS[condition].title}" if condition else "")
    return ["", f"## {title}", "", *_table(head, body)]


def _ranged(results: Results, name: str, workload: str, key: str, digits: int) -> str:
    shown = _cell(results, name, workload, key, digits)
    values = [row[key] for row in rows(results, name, workload) if row.get(key) is not None]
    if key in ("per_s", "ratio", "p99_ms", "call_p99_ms") and len(values) > 1:
        shown += f" ({min(values):,.{digits}f}-{max(values):,.{digits}f})"
    return shown


def _growth(name: str, row: Row) -> list[str]:
    body = [[key, f"{value:,.2f}" if isinstance(value, float) else str(value)] for key, value in row.items()]
    return [
        "",
        f"## {_GROWTH_TITLES[name]}: {row.get('jobs', row.get('schedules', 0)):,}",
        "",
        *_table(["what", "measured"], body),
    ]


def _doubts(document: Mapping[str, Any], results: Results) -> list[str]:
    calibration = [row["calibration_ms"] for w in results.values() for m in w.values() for row in m if row]
    out = []
    if calibration:
        low, high = min(calibration), max(calibration)
        out += [
            "",
            f"A fixed loop took {low:.1f} to {high:.1f} ms between measurements: so much the host's speed varied.",
        ]
    doubts = [
        f"{name} / {workload}: {doubt}"
        for name, workloads in results.items()
        for workload, rounds in workloads.items()
        for doubt in _remarks([row for row in rounds if row])
    ]
    measured = [row for w in results.values() for m in w.values() for row in m if row]
    if disturbed := sum(not quiet(row) for row in measured):
        doubts.append(
            f"{disturbed} of {len(measured)} measurements with more than {BUSY} cores busy elsewhere"
        )
    doubts += [f"{name}: {row['error']}" for name, row in document["growth"].items() if "error" in row]
    return [*out, "", "## Doubtful", "", *(f"- {doubt}" for doubt in doubts)] if doubts else out


_Judge = Callable[[Row], str | None]
_JUDGES: tuple[_Judge, ...] = (
    lambda row: str(row["error"]) if "error" in row else None,
    lambda row: f"cut off with {row['jobs']} jobs done" if row.get("complete") is False else None,
    lambda row: f"{row['repeated']} jobs ran more than once" if row.get("repeated") else None,
    lambda row: (
        f"{row['left']} jobs not finished for the library ten seconds later" if row.get("left") else None
    ),
    lambda row: f"{row['missing']} jobs did not start" if row.get("missing") else None,
)


def _remarks(measured: Sequence[Row]) -> list[str]:
    """What makes the rows of one cell doubtful."""
    return [doubt for row in measured for judge in _JUDGES if (doubt := judge(row))]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


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
