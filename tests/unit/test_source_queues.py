"""The queues of five production systems, as this library's: by registration and by environment alike."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

import jobq
from jobq import Backoff, ConfigError, QueueSpec, Settings, queues
from jobq.enqueueing import Enqueuer
from jobq.keys import Keys
from jobq.queues import LANES, Retention
from jobq.registry import Registry

# name, slots, what else; the id is that of docs/checklist.toml
QUEUES = {
    "Q-01": QueueSpec("email", slots=5),
    "Q-02": QueueSpec("sync", slots=2),
    "Q-03": QueueSpec("payment", slots=3),
    "Q-04": QueueSpec("enrollment", slots=3),
    "Q-05": QueueSpec("notification", slots=5),
    "Q-06": QueueSpec("cleanup", slots=1),
    "Q-07": QueueSpec("whatsapp-messages", slots=5, max_attempts=3, backoff=Backoff(base=2, factor=2)),
    "Q-08": QueueSpec("credit-score", slots=2, max_attempts=3),
    "Q-09": QueueSpec("order-routing", slots=3, max_attempts=3),
    "Q-10": QueueSpec("payment-reminders", slots=3, max_attempts=3),
    "Q-11": QueueSpec("report-generation", slots=1, max_attempts=2, timeout=timedelta(minutes=5)),
    "Q-12": QueueSpec("order-processing", slots=5, max_attempts=3),
    "Q-13": QueueSpec("export", slots=2, max_attempts=2),
    "Q-14": QueueSpec("ai", slots=3, max_attempts=3, timeout=timedelta(seconds=60)),
    "Q-15": QueueSpec("scheduled", slots=2, max_attempts=3),
    "Q-16": QueueSpec("pdf", slots=2, isolation="process"),
}
"""As their systems declare them."""

FIELDS = ("slots", "max_attempts", "backoff", "timeout", "isolation")


def _text(value: object) -> str:
    if isinstance(value, Backoff):
        return f"base={value.base.total_seconds():g}s,factor={value.factor:g}"
    return f"{value.total_seconds():g}s" if isinstance(value, timedelta) else str(value)


@pytest.mark.covers(
    "Q-01", "Q-02", "Q-03", "Q-04", "Q-05", "Q-06", "Q-07", "Q-08", "Q-09", "Q-10", "Q-11", "Q-12", "Q-13", "Q-14",
    "Q-15", "Q-16", "Q-17",
)  # fmt: skip
@pytest.mark.parametrize("spec", QUEUES.values(), ids=QUEUES)
def test_by_registration_and_by_environment(spec: QueueSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    jobq.queue(spec)
    assert Settings.load().queue_specs()[spec.name] == spec
    queues.declared.clear()
    jobq.queue(QueueSpec(spec.name, slots=77))  # the code knows its name, the environment all the rest
    variable = f"JOBQ_QUEUES__{spec.name.upper().replace('-', '_')}"
    for field in FIELDS:
        value = getattr(spec, field)
        if value is not None and value != getattr(QueueSpec("other", slots=1), field):
            monkeypatch.setenv(f"{variable}__{field.upper()}", _text(value))
    monkeypatch.setenv(f"{variable}__SLOTS", str(spec.slots))
    found = Settings.load().queue_specs()
    assert set(found) == {*LANES, spec.name}
    assert found[spec.name] == spec


@pytest.mark.covers("Q-13", "Q-14", "Q-15")
@pytest.mark.parametrize(("name", "order"), [("export", 5), ("ai", 7), ("scheduled", 5)])
def test_their_priority_is_the_order_within_the_queue(name: str, order: int) -> None:
    registry = Registry()

    @jobq.task(f"{name}.run", queue=name, order=order, registry=registry)
    def run(number: int) -> None: ...

    assert run.spec.order == order
    settings = Settings.load()
    enqueuer = Enqueuer(keys=Keys("rq"), codec=settings.codec(), settings=settings, owner=None)
    request = run.options().request(number=1)
    new = enqueuer.template(request, "x")
    assert (request.queue, new.fields.get("or", "5")) == (name, str(order))


@pytest.mark.covers("Q-12", "D-06", "B-03", "B-04", "B-05", "B-06", "B-09")
def test_their_tasks_keep_what_they_ask_for() -> None:
    registry = Registry()

    @jobq.task(
        "orders.process", queue="order-processing", dedup="{order_id}", max_attempts=3, registry=registry
    )
    def process(order_id: str) -> None: ...

    @jobq.task(
        "mail.send", queue="email", max_attempts=5, backoff=Backoff(base=1, factor=2), registry=registry
    )
    def mail(to: str) -> None: ...

    @jobq.task("reports.make", priority="low", max_attempts=2, timeout=300, registry=registry)
    def report(kind: str) -> None: ...

    assert process.spec.dedup is not None
    assert process.spec.dedup.template == "{order_id}"
    assert (mail.spec.max_attempts, report.spec.max_attempts) == (5, 2)
    assert report.spec.timeout == timedelta(minutes=5)
    again = mail.options(max_attempts=5, backoff=jobq.Fixed(5))
    assert again.overrides.max_attempts == 5
    assert dataclasses.astuple(again.overrides.backoff) == dataclasses.astuple(jobq.Fixed(5))


@pytest.mark.covers("T-01", "T-02", "T-03", "T-04")
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("100", Retention(count=100)),
        ("7d/2MB", Retention(timedelta(days=7), size=2 * 1024 * 1024)),
        ("24h/1000", Retention(timedelta(hours=24), 1_000)),
        ("7d/5000", Retention(timedelta(days=7), 5_000)),
        ("48h", Retention(timedelta(hours=48))),
    ],
)
def test_their_retentions(text: str, kept: Retention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_QUEUES__EMAIL__KEEP_DEAD", text)
    assert Settings.load().queue_specs()["email"].keep_dead == kept


@pytest.mark.parametrize("text", ["24h/", "soon", "24h/many", "-1", "24h/1000/7", "1MB/2MB"])
def test_a_wrong_retention_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_QUEUES__EMAIL__KEEP_DEAD", text)
    with pytest.raises(ConfigError, match="expected an age, a count, a size"):
        Settings.load()


@pytest.mark.covers("P-14")
def test_priorities_are_typed_constants() -> None:
    assert [str(each) for each in jobq.Priority] == ["critical", "high", "medium", "low", "batch"]
    assert jobq.Priority("high") is jobq.Priority.HIGH


def test_groups_are_set_in_code_and_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    jobq.queue(QueueSpec("email", slots=2, group="mail", weight=3))
    monkeypatch.setenv("JOBQ_QUEUES__SMS__GROUP", "mail")
    monkeypatch.setenv("JOBQ_QUEUES__EMAIL__WEIGHT", "5")
    specs = Settings.load().queue_specs()
    assert [(specs[name].group, specs[name].weight) for name in ("email", "sms")] == [
        ("mail", 5),
        ("mail", 1),
    ]
    monkeypatch.setenv("JOBQ_QUEUES__EMAIL__GROUP", "none")
    assert Settings.load().queue_specs()["email"].group is None
    monkeypatch.setenv("JOBQ_QUEUES__SMS__NICE", "5")
    monkeypatch.setenv("JOBQ_QUEUES__EMAIL__GROUP", "mail")
    with pytest.raises(ConfigError, match=r"'sms'.*agree on nice"):
        Settings.load().queue_specs()
    monkeypatch.setenv("JOBQ_QUEUES__CRITICAL__GROUP", "mail")
    with pytest.raises(ConfigError, match="queue 'critical' is critical"):
        Settings.load().queue_specs()


@pytest.mark.parametrize(("name", "value"), [("GROUP", "a:b"), ("WEIGHT", "0"), ("WEIGHT", "x")])
def test_a_wrong_group_or_weight_names_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"JOBQ_QUEUES__EMAIL__{name}", value)
    with pytest.raises(ConfigError, match=f"JOBQ_QUEUES__EMAIL__{name}='{value}' is wrong"):
        Settings.load()
