"""The frame judges right: what the ledgers mean, what the table shows."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import points, publish, scenes
from tests.chaos.frame import Experiment, Report, Setup, perform
from tests.chaos.ledger import (
    Entry,
    HandlerLedger,
    Kill,
    Offer,
    ProducerLedger,
    compare,
    percentile,
    rerun_waits,
)


def entry(word: str, token: str, at: float = 0.0) -> Entry:
    return Entry(word, token, f"job-{token}", 1, 7, at)


def row_of(report: Report, setup: Setup, page: Path, id_: str = "FI-01") -> None:
    made = Experiment(id=id_, fault="a | b", criterion="lost 0", run=lambda _: report, gate=True, minutes=1)
    publish.publish(made, setup, report, 12.4, page)


def test_the_ledgers_tell_lost_phantom_and_duplicates() -> None:
    offers = [Offer(token, f"job-{token}", 0.0, "acked") for token in ("once", "twice", "cut", "never")]
    offers += [
        Offer("unsure", "job-unsure", 0.0, "ambiguous"),
        Offer("sent again", "", 0.0, "ambiguous"),
        Offer("sent again", "", 1.0, "acked"),
        Offer("refused", "", 0.0, "failed"),
    ]
    runs = [entry(word, "once") for word in ("start", "end")]
    runs += [entry(word, "twice") for word in ("start", "start", "end", "end")]
    runs += [entry("start", "cut"), entry("start", "unsure"), entry("end", "unsure"), entry("start", "ghost")]
    runs += [entry("start", "refused")]
    found = compare(offers, runs)
    assert found.acked == 5
    assert found.lost == ["cut", "never", "sent again"]
    assert found.phantom == ["ghost"]
    assert found.duplicates == 1
    assert (found.ambiguous, found.recovered) == (1, 1)
    assert found.refused_ran == ["refused"]


def test_a_rerun_is_timed_from_the_kill_that_caused_it() -> None:
    runs = [entry("start", "a", 1.0), entry("start", "a", 5.0), entry("start", "a", 9.0)]
    waits = rerun_waits([Kill(2.0, frozenset({"job-a"})), Kill(6.0, frozenset({"job-a", "job-b"}))], runs)
    assert waits == [3.0, 3.0]
    assert percentile([], 0.99) == 0.0
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0


def test_a_ledger_keeps_its_lines(tmp_path: Path) -> None:
    ledger = ProducerLedger(tmp_path / "producer.ledger")
    ledger.note("t1", "", "ambiguous")
    ledger.note("t1", "job-1", "acked")
    assert [(offer.job_id, offer.outcome) for offer in ledger.offers()] == [
        ("-", "ambiguous"),
        ("job-1", "acked"),
    ]


def test_half_a_line_waits_for_its_rest(tmp_path: Path) -> None:
    ledger = HandlerLedger(tmp_path / "handlers.ledger")
    assert ledger.entries() == []
    with ledger.path.open("a") as file:
        file.write("start t1 job-1 1 7 1.5\nend t1 job")
        file.flush()
        assert [found.word for found in ledger.entries()] == ["start"]
        file.write("-1 1 7 2.5\n")
    assert [(found.word, found.job_id, found.at) for found in ledger.entries()] == [
        ("start", "job-1", 1.5),
        ("end", "job-1", 2.5),
    ]


def test_an_experiment_that_breaks_has_not_passed(tmp_path: Path) -> None:
    def broken(_: Setup) -> Report:
        raise RuntimeError("no server")

    made = Experiment(id="FI-99", fault="", criterion="", run=broken, gate=False, minutes=1)
    report, _ = perform(made, Setup(folder=tmp_path, seed=1))
    assert report.problems == ["did not end: RuntimeError: no server"]


def test_bounds_become_problems() -> None:
    report = Report()
    report.zero("lost", 1)
    report.at_most("rerun max, s", 3.0004, 3)
    report.at_least("done", 5, 5)
    assert report.problems == ["lost at most 0: 1", "rerun max, s at most 3: 3.0004"]
    assert report.figures == {"lost": 1, "rerun max, s": 3.0, "done": 5}


def test_reports_of_parts_add_up() -> None:
    whole = Report(figures={"lost": 1}, notes=["once"])
    whole.add(Report(figures={"lost": 2, "took, s": 1.5}, problems=["late"], notes=["once", "too"]))
    assert whole == Report(figures={"lost": 3, "took, s": 1.5}, problems=["late"], notes=["once", "too"])


def test_the_table_has_one_row_an_experiment_in_their_order(tmp_path: Path) -> None:
    page, setup = tmp_path / "page.md", Setup(folder=tmp_path, seed=3, effort=0.5)
    page.write_text(f"# Before\n\n{publish.BEGIN}\n{publish.END}\n\nafter\n")
    row_of(Report(figures={"lost": 0, "jobs": 12_000, "p99, s": 1.2345}), setup, page, "FI-02")
    row_of(Report(problems=["lost at most 0: 1"], notes=["not kept"]), setup, page)
    row_of(Report(figures={"lost": 0}), setup, page)
    text = page.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| FI-")]
    assert [row.split(" | ")[0] for row in rows] == ["| FI-01", "| FI-02"]
    assert rows[0].split(" | ")[1:5] == ["a / b", "lost 0", "lost 0", "yes"]
    assert rows[1].split(" | ")[3] == "lost 0; jobs 12,000; p99, s 1.23"
    assert "effort 0.5, seed 3, 12 s" in rows[1]
    assert text.startswith("# Before\n")
    assert text.endswith("\n\nafter\n")


def test_every_point_can_be_reached() -> None:
    """Those of the short form change with the seed: what was renamed is missed at once all the same."""
    names = [point.name for point in points.POINTS]
    assert len(set(names)) == len(names) >= 20
    for point in points.POINTS:
        assert hasattr(scenes.Stage, scenes.method(point.scene)), point.name
        points.owner_of(point.target)
