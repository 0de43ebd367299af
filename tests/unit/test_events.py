from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import structlog

from jobq import events
from jobq.events import EVENTS, Event, configure_logging, emit, enabled, subscribe

CONTRACT = """
job.enqueued job.deduplicated job.started job.progressed job.succeeded job.retry_scheduled job.snoozed job.dead
job.cancelled job.timed_out job.rescued job.removed job.parked queue.paused queue.resumed queue.drained
queue.cleaned queue.limited queue.sla_breached worker.started worker.draining worker.stopped worker.lost
schedule.fired schedule.missed schedule.skipped redis.unavailable redis.recovered fallback.used admin.action
"""


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch):
    root, ours = logging.getLogger(), logging.getLogger("jobq")
    handlers, level, own = root.handlers[:], root.level, ours.level
    monkeypatch.setattr(events, "_sink", events._library_sink)
    monkeypatch.setattr(events, "_subscribers", ())
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(own)


def seen() -> list[Event]:
    found: list[Event] = []
    subscribe(found.append)
    return found


def test_every_event_of_the_contract_is_known():
    assert set(CONTRACT.split()) <= set(EVENTS)


def test_a_subscriber_gets_name_and_fields():
    found = seen()
    emit("job.started", job_id="a-1", task="t", queue="high", attempt=1, trace_id=None)
    assert found == [Event("job.started", {"job_id": "a-1", "task": "t", "queue": "high", "attempt": 1})]
    assert found[0].level == logging.DEBUG


def test_unsubscribing_twice_leaves_the_others():
    first: list[Event] = []
    second: list[Event] = []
    stop = subscribe(first.append)
    subscribe(second.append)
    stop()
    stop()
    emit("job.dead", job_id="a-1")
    assert (len(first), len(second)) == (0, 1)


def test_a_subscriber_that_fails_breaks_neither_the_job_nor_the_others(caplog):
    def broken(event: Event) -> None:
        raise RuntimeError("no")

    subscribe(broken)
    found = seen()
    emit("job.succeeded", job_id="a-1")
    assert len(found) == 1
    assert "a subscriber failed on job.succeeded" in caplog.text


def test_params_results_errors_texts_and_passwords_never_pass():
    found = seen()
    emit(
        "job.dead",
        job_id="a-1",
        params={"code": "424242"},
        result="424242",
        error="bad code 424242",
        error_type="ValueError",
        url="redis://:424242@host/0",
        detail="lost redis://u:424242@host:1/0 twice",
    )
    assert "424242" not in repr(found)
    assert found[0].fields["url"] == "redis://:***@host/0"
    assert found[0].fields["error_type"] == "ValueError"


def test_enabled_follows_the_level_and_the_subscribers():
    logging.getLogger("jobq").setLevel(logging.ERROR)
    assert not enabled("job.succeeded")
    assert enabled("job.dead")
    seen()
    assert enabled("job.succeeded")


def test_an_event_that_nobody_sees_makes_no_record(monkeypatch):
    monkeypatch.setattr(events, "Event", lambda *a: pytest.fail("made"))
    logging.getLogger("jobq").setLevel(logging.ERROR)
    emit("job.succeeded", job_id="a-1")


def test_a_library_writes_to_the_applications_logging(caplog):
    caplog.set_level("INFO", "jobq")
    emit("job.succeeded", job_id="a-1", run_ms=3)
    (record,) = caplog.records
    assert record.getMessage() == "job.succeeded job_id=a-1 run_ms=3"
    assert (record.name, record.levelname) == ("jobq", "INFO")
    assert record.jobq == {"event": "job.succeeded", "job_id": "a-1", "run_ms": 3}


def test_importing_and_emitting_configures_nothing():
    code = (
        "import logging, sys; from jobq import events; events.emit('job.succeeded', job_id='a');"
        "assert not logging.getLogger().handlers and not logging.getLogger('jobq').handlers;"
        "assert logging.getLogger('jobq').level == 0; assert 'structlog' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_lines_have_the_keys_of_the_contract():
    out = io.StringIO()
    configure_logging("json", "info", out)
    emit("job.retry_scheduled", job_id="a-1", task="t", queue="high", attempt=1, max_attempts=3)
    emit("job.started", job_id="a-1")  # debug: not at this level
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert datetime.fromisoformat(found.pop("timestamp")).utcoffset().total_seconds() == 0
    assert found == {
        "event": "job.retry_scheduled",
        "level": "warning",
        "job_id": "a-1",
        "task": "t",
        "queue": "high",
        "attempt": 1,
        "max_attempts": 3,
    }


def test_json_lines_load_nothing_that_is_for_people():
    code = (
        "import sys; from jobq.events import configure_logging, emit; configure_logging('json');"
        "emit('job.dead', job_id='a');"
        "sys.exit(str({'structlog', 'rich', 'pygments', 'attr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[1:] == ["set()"]


@pytest.mark.parametrize("explicit", [True, False])
def test_what_an_applications_structlog_prepared_keeps_its_fields(explicit):
    out = io.StringIO()
    configure_logging("json", "INFO", out)
    logger = structlog.wrap_logger(
        logging.getLogger("app"),
        processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        raise ValueError("no")
    except ValueError as error:
        logger.error("broke", order_id="o-1", exc_info=error if explicit else True)
    found = json.loads(out.getvalue())
    assert (found["event"], found["order_id"], found["level"]) == ("broke", "o-1", "error")
    assert found["exception"].endswith("ValueError: no")


def test_other_loggers_come_in_the_same_form_from_warning_on():
    out = io.StringIO()
    configure_logging("json", "debug", out)
    logging.getLogger("httpx").info("GET https://u:pw@host")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("app").warning("it %s", "broke", exc_info=True)
    (line,) = out.getvalue().splitlines()
    found = json.loads(line)
    assert (found["event"], found["level"], found["logger"]) == ("it broke", "warning", "app")
    assert "ValueError: no" in found["exception"]


def test_configuring_again_replaces():
    first, second = io.StringIO(), io.StringIO()
    configure_logging("json", "INFO", first)
    configure_logging("console", "INFO", second)
    emit("job.dead", job_id="a-1", reason="poison")
    logging.getLogger("app").error("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
    assert "job.dead" in second.getvalue()
    assert "poison" in second.getvalue()
    assert "\x1b" not in second.getvalue()


def test_the_default_format_is_json_where_there_is_no_terminal():
    out = io.StringIO()
    configure_logging(None, "INFO", out)
    emit("job.dead", job_id="a-1")
    assert json.loads(out.getvalue())["event"] == "job.dead"


def test_a_terminal_gets_the_console_form():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    configure_logging(None, "INFO", out)
    emit("job.dead", job_id="a-1")
    assert "\x1b[" in out.getvalue()


def test_a_log_that_cannot_be_written_breaks_no_job():
    out = io.StringIO()
    configure_logging("json", "INFO", out)
    out.close()
    found = seen()
    emit("job.dead", job_id="a-1")
    assert [event.name for event in found] == ["job.dead"]


def test_values_that_json_does_not_know_become_text():
    out = io.StringIO()
    configure_logging("json", "INFO", out)
    emit("job.dead", job_id="a-1", what=object)
    assert "object" in json.loads(out.getvalue())["what"]


# -- the page -------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
PAGE = {
    cells[1].strip("` "): (cells[2].strip(), cells[3])
    for line in (ROOT / "docs/events.md").read_text().splitlines()
    if len(cells := line.split("|")) == 5 and "`" in cells[1]
}


def _said() -> Iterator[tuple[str, set[str]]]:
    """Every event that the code names where it emits one, and the fields that it gives."""
    for path in (ROOT / "src/jobq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            said = isinstance(node, ast.Call) and ast.unparse(node.func) == "events.emit"
            if said and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value, {word.arg for word in node.keywords if word.arg}


def test_the_page_has_every_event_with_its_level() -> None:
    assert {name: level for name, (level, _) in PAGE.items()} == {
        name: logging.getLevelName(level).lower() for name, level in events.EVENTS.items()
    }


def test_the_page_has_every_field() -> None:
    for name, given in _said():
        missing = given - set(re.findall(r"[a-z_]+", PAGE[name][1]))
        assert not missing, f"docs/events.md: {name} has {missing}, too"


def test_nothing_is_declared_in_vain() -> None:
    code = "".join(p.read_text() for p in (ROOT / "src/jobq").rglob("*.py") if p.name != "events.py")
    dynamic = re.compile(r"schedule\.")  # said as schedule.{word}
    unsaid = {name for name in events.EVENTS if f'"{name}"' not in code and not dynamic.match(name)}
    assert unsaid == {name for name, (_, fields) in PAGE.items() if "reserved" in fields}
