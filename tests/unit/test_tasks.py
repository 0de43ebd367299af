"""Tasks: signatures become validators, options are checked when written, names find their task."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import timeit
import traceback
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import AfterValidator, BaseModel, SecretStr

from jobq import context, dispatch, params, tasks
from jobq.context import JobContext, current_job, running_job
from jobq.dedup import DedupSpec
from jobq.errors import (
    ConfigError,
    NewerPayloadError,
    NoHandlerError,
    PayloadError,
    PayloadUnreadableError,
    UnknownTaskError,
)
from jobq.helpers.helper import Helper
from jobq.job import Job, JobState
from jobq.limits import Concurrency, Rate
from jobq.queues import LANES, Priority
from jobq.retry import Backoff, Fixed, RetryPolicy
from jobq.tasks import EnqueueRequest, Registry, Secret, Task, task


class Colour(StrEnum):
    RED = "red"


class Line(BaseModel):
    sku: str
    count: int


class Login(BaseModel):
    user: str
    password: SecretStr


def _leaky(value: str) -> str:
    raise ValueError(f"{value} is no good")


class Recorder:
    """A dispatcher that keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[EnqueueRequest] = []

    def enqueue(self, requests: list[EnqueueRequest], /) -> list[Job]:
        self.requests += requests
        return [
            Job(id=f"id-{n}", task=r.task.name, queue=r.queue, state=JobState.QUEUED)
            for n, r in enumerate(requests)
        ]

    async def enqueue_async(self, requests: list[EnqueueRequest], /) -> list[Job]:
        return self.enqueue(requests)


class AsyncRecorder:
    def __init__(self) -> None:
        self.requests: list[EnqueueRequest] = []

    async def enqueue(self, requests: list[EnqueueRequest], /) -> list[Job]:
        self.requests += requests
        return [Job(id="a", task=r.task.name, queue=r.queue, state=JobState.QUEUED) for r in requests]


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(dispatch, "_provider", lambda: recorder)
    return recorder


def make(fn: Any, name: str = "t", **options: Any) -> Task[..., Any]:
    made: Task[..., Any] = task(name, registry=Registry(), **options)(fn)
    return made


def make_in(registry: Registry, fn: Any) -> None:
    task("same", registry=registry)(fn)


def add(a: int, b: int = 2, *, c: int = 3) -> int:
    return a + b + c


# -- binding ---------------------------------------------------------------------------------- ---


def test_params_are_converted_and_defaults_kept() -> None:
    t = make(add)
    assert t.bind((), {"a": "1"}) == {"a": 1, "b": 2, "c": 3}
    assert t.bind((5, 6), {"c": 7}) == {"a": 5, "b": 6, "c": 7}
    assert t.params_model.model_fields.keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "task 't': param 'a' is missing"),
        ((), {"a": 1, "z": 9}, "task 't': unknown param 'z' (it takes: a, b, c)"),
        ((), {"a": "x"}, "task 't': param 'a': Input should be a valid integer"),
        ((1, 2, 3), {}, "task 't': takes 2 positional params, got 3"),
        ((1,), {"a": 2}, "task 't': param 'a' is given twice"),
    ],
)
def test_wrong_params_are_one_line_that_names_the_param(args: Any, kwargs: Any, text: str) -> None:
    with pytest.raises(PayloadError) as caught:
        make(add).bind(args, kwargs)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert caught.value.task == "t"


def test_many_problems_are_bounded() -> None:
    def wide(a: int, b: int, c: int, d: int, e: int) -> None: ...

    with pytest.raises(PayloadError, match="and 2 more"):
        make(wide).bind((), {})


def test_a_mutable_default_is_not_shared() -> None:
    def collect(items: list[int] = []) -> None: ...  # noqa: B006

    t = make(collect)
    t.bind((), {})["items"].append(1)
    assert t.bind((), {}) == {"items": []}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), Decimal("NaN")])
def test_nan_and_infinity_are_refused(value: Any) -> None:
    def weigh(x: float | Decimal) -> None: ...
    def weigh_all(x: dict[str, list[float]]) -> None: ...

    with pytest.raises(PayloadError, match="finite"):
        make(weigh).bind((), {"x": value})
    with pytest.raises(PayloadError, match="finite"):
        make(weigh_all).bind((), {"x": {"a": [value]}})


def test_values_survive_json() -> None:
    def rich(
        amount: Decimal,
        at: datetime,
        day: date,
        uid: UUID,
        colour: Colour,
        raw: bytes,
        lines: list[Line],
        pair: tuple[int, str],
        names: set[str],
        wait: timedelta,
        note: str | None = None,
    ) -> None: ...

    from pydantic_core import from_json, to_json

    t = make(rich)
    bound = t.bind((), {
        "amount": "12.50", "at": datetime(2026, 1, 2, tzinfo=UTC), "day": date(2026, 1, 2),
        "uid": UUID(int=5), "colour": "red", "raw": b"\xff\x00", "lines": [{"sku": "a", "count": 1}],
        "pair": (1, "b"), "names": {"x"}, "wait": timedelta(seconds=1.5),
    })  # fmt: skip
    wire = from_json(to_json(t.dump(bound), bytes_mode="base64"))
    assert t.load(wire, 1) == bound


def test_names_of_model_methods_and_positional_use() -> None:
    def odd(json: str, copy: int, schema: bool = True) -> None: ...

    assert make(odd).bind(("x", 1), {}) == {"json": "x", "copy": 1, "schema": True}


def test_binding_two_params_is_quick() -> None:
    def send(email: str, code: Annotated[str, Secret]) -> None: ...

    t = make(send)
    kwargs = {"email": "a@example.com", "code": "1"}
    best = min(timeit.repeat(lambda: t.bind((), kwargs), number=2_000, repeat=7)) / 2_000
    assert best < 10e-6


# -- secrets ---------------------------------------------------------------------------------- ---


def test_which_params_are_secret() -> None:
    def f(
        a: SecretStr,
        b: Annotated[str, Secret],
        c: SecretStr | None,
        d: list[Annotated[str, Secret()]],
        e: str,
        f: Annotated[str, "a note"] = "",
    ) -> None: ...

    t = make(f)
    assert t.secrets == {"a", "b", "c", "d"}
    bound = t.bind((), {"a": "1", "b": "2", "c": None, "d": ["4"], "e": "5"})
    assert isinstance(bound["a"], SecretStr)
    assert t.dump(bound) == {"a": "1", "b": "2", "c": None, "d": ["4"], "e": "5", "f": ""}
    assert t.load(t.dump(bound), 1) == bound


@pytest.mark.parametrize("hint", [Annotated[int, Secret], Annotated[str, Secret, AfterValidator(_leaky)]])
def test_an_error_never_shows_a_secret(hint: Any) -> None:
    def f(code: Any, other: int = 1) -> None: ...

    f.__annotations__["code"] = hint
    t = make(f)
    value = "hunter" + str(2)  # not written out, for a traceback quotes the test's own lines
    for act, args in ((t.bind, ((), {"code": value})), (t.load, ({"code": value}, 1))):
        with pytest.raises((PayloadError, PayloadUnreadableError)) as caught:
            act(*args)
        shown = "".join(traceback.TracebackException.from_exception(caught.value).format())
        assert value not in shown
        assert "'code'" in str(caught.value)
        assert caught.value.__context__ is None


def test_keys_inside_a_secret_are_not_shown_either() -> None:
    def f(codes: Annotated[dict[str, int], Secret]) -> None: ...

    with pytest.raises(PayloadError) as caught:
        make(f).bind((), {"codes": {"hunter2": "x"}})
    assert "hunter2" not in str(caught.value)


def test_a_secret_inside_a_model_is_refused() -> None:
    def f(login: Login) -> None: ...
    def g(logins: dict[str, list[Login]]) -> None: ...

    for fn in (f, g):
        with pytest.raises(ConfigError, match=r"Login\.password"):
            make(fn)


# -- signatures and options that are refused -------------------------------------------------- ---


def test_signatures_that_cannot_be_params() -> None:
    def stars(*args: int) -> None: ...
    def stars2(**kw: int) -> None: ...
    def under(_x: int) -> None: ...
    def slash(x: int, /) -> None: ...
    def bad_default(x: int = "many") -> None: ...  # type: ignore[assignment]
    def unresolved(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def foreign(x: threading.Thread) -> None: ...
    def generates() -> Any:
        yield 1

    for fn, text in (
        (stars, r"\*args"),
        (stars2, r"\*\*kw"),
        (under, "_x"),
        (slash, "'/'"),
        (bad_default, "default of param 'x'"),
        (unresolved, "Nowhere.*TYPE_CHECKING"),
        (foreign, "pydantic"),
        (generates, "generator"),
        (print, "function"),
        (Line, "function"),
    ):
        with pytest.raises(ConfigError, match=text):
            make(fn)


def test_what_it_returns_need_not_resolve() -> None:
    def f(x: int) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

    assert make(f).bind((), {"x": 1}) == {"x": 1}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"priority": "urgent"}, "'critical', 'high'"),
        ({"priority": "high", "queue": "email"}, "not both"),
        ({"queue": "a:b"}, "queue='a:b'"),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"max_attempts": True}, "max_attempts=True"),
        ({"backoff": 3}, "backoff=3"),
        ({"retry": RetryPolicy(), "max_attempts": 2}, "whole policy"),
        ({"retry": 3}, "RetryPolicy"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": float("inf")}, "finite"),
        ({"timeout": "30s"}, "seconds or a timedelta"),
        ({"dedup": "{nope}"}, "'nope'"),
        ({"dedup": "{code}"}, "secret"),
        ({"dedup": "{"}, "dedup"),
        ({"rate": Rate(1, key="{code}")}, "secret"),
        ({"concurrency": Concurrency(1, key="{code}")}, "secret"),
        ({"rate": 5}, "Rate"),
        ({"dedup_until": "started"}, "need dedup"),
        ({"dedup": "{a}", "dedup_until": "never"}, "dedup_until='never'"),
        ({"dedup": "{a}", "on_duplicate": "panic"}, "on_duplicate|panic"),
        ({"dedup": DedupSpec("{a}"), "on_duplicate": "replace"}, "DedupSpec"),
        ({"isolation": "vm"}, "'thread' or 'process'"),
        ({"version": 0}, "version=0"),
        ({"upcast": lambda p, v: p}, "version=2"),
    ],
)
def test_a_wrong_option_names_its_remedy(options: dict[str, Any], text: str) -> None:
    def f(a: int, code: Annotated[str, Secret]) -> None: ...

    with pytest.raises(ConfigError, match=text) as caught:
        make(f, **options)
    assert "'t'" in str(caught.value)


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="retries"):
        make(add, retries=3)


def test_options_are_kept() -> None:
    t = make(
        add, priority=Priority.HIGH, timeout=30, dedup="{a}", dedup_until=60, on_duplicate="replace",
        rate=Rate(50, per=60), concurrency=Concurrency(1, key="{a}"), isolation="process", max_attempts=5,
    )  # fmt: skip
    assert (t.spec.queue, t.spec.timeout, t.spec.isolation) == ("high", timedelta(seconds=30), "process")
    assert t.spec.dedup == DedupSpec("{a}", timedelta(seconds=60), "replace")
    assert make(add).spec.queue == "medium"
    assert make(add, queue="email").spec.queue == "email"


@pytest.mark.covers("O-09", "B-06")
def test_the_retry_policy_prefers_call_then_task_then_queue() -> None:
    lane, settings = LANES["high"], RetryPolicy(max_attempts=4, delays=Fixed(5))
    assert make(add).spec.policy(lane, default=settings).max_attempts == 4
    assert make(add).spec.policy(lane, default=settings).delays == Fixed(5)
    assert make(add, backoff=Fixed(1)).spec.policy(lane, default=settings).delays == Fixed(1)
    assert make(add, max_attempts=7).spec.policy(lane, default=settings).max_attempts == 7
    own = RetryPolicy(max_attempts=9, delays=Fixed(1))
    assert make(add, retry=own).spec.policy(lane) is own
    asked = make(add, retry=own).spec.policy(lane, max_attempts=1, backoff=Backoff(base=9))
    assert (asked.max_attempts, asked.delays) == (1, Backoff(base=9))


# -- enqueueing ------------------------------------------------------------------------------- ---


def test_enqueue_validates_then_sends(sent: Recorder) -> None:
    t = make(add, priority="low")
    assert t.enqueue(1, c=5).queue == "low"
    assert sent.requests[0].params == {"a": 1, "b": 2, "c": 5}
    with pytest.raises(PayloadError):
        t.enqueue("x")
    assert len(sent.requests) == 1


def test_enqueue_unwraps_secrets_for_the_codec(sent: Recorder) -> None:
    def f(code: SecretStr) -> None: ...

    make(f).enqueue(code=SecretStr("1"))
    assert sent.requests[0].params == {"code": "1"}


@pytest.mark.covers("O-07")
def test_enqueue_many_sends_nothing_if_one_is_wrong(sent: Recorder) -> None:
    t = make(add)
    with pytest.raises(PayloadError, match=r"param 'a' is missing.*item 1"):
        t.enqueue_many([{"a": 1}, {"b": 1}])
    with pytest.raises(PayloadError, match="item 0 is a int"):
        t.enqueue_many([1])  # type: ignore[list-item]
    assert not sent.requests
    assert t.enqueue_many([]) == []
    assert len(t.enqueue_many({"a": n} for n in range(3))) == 3


@pytest.mark.covers("O-01", "O-02", "O-04", "P-12")
def test_options_of_a_call(sent: Recorder) -> None:
    t = make(add)
    t.options(delay=5, priority="critical", dedup_key="x", tags=["a"], timeout=1.5).enqueue(1)
    overrides = sent.requests[0].overrides
    assert sent.requests[0].queue == "critical"
    assert (overrides.delay, overrides.dedup_key, overrides.tags) == (timedelta(seconds=5), "x", ("a",))
    at = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert t.options(at=at).request(1).overrides.at == at
    assert len(t.options(queue="email").enqueue_many([{"a": 1}])) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delay": 1, "at": datetime.now(UTC)}, "not both"),
        ({"at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"delay": -1}, "0 or more"),
        ({"delay": float("nan")}, "finite"),
        ({"dedup_until": 5}, "dedup_key"),
        ({"tags": "a"}, "list"),
        ({"tags": [""]}, "tag"),
        ({"priority": 1}, "priority=1"),
    ],
)
def test_wrong_options_of_a_call(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(add).options(**options)


async def _async_calls(sent: Recorder) -> None:
    t = make(add)
    assert (await t.enqueue_async(1)).task == "t"
    assert len(await t.enqueue_many_async([{"a": 1}, {"a": 2}])) == 2
    other = AsyncRecorder()
    assert (await t.options(client=other).enqueue_async(1)).id == "a"
    assert len(other.requests) == 1
    with pytest.raises(ConfigError, match="enqueue_async"):
        t.options(client=other).enqueue(1)
    own = Recorder()
    t.options(client=own).enqueue(1)
    assert len(own.requests) == 1
    assert len(sent.requests) == 3


def test_async_and_other_clients(sent: Recorder) -> None:
    asyncio.run(_async_calls(sent))


# -- running ---------------------------------------------------------------------------------- ---


def test_plain_call_and_run() -> None:
    t = make(add)
    assert t("a", "b", c="c") == "abc"  # the function itself, nothing checked
    assert t.run("1") == 6
    with pytest.raises(PayloadError):
        t.run("x")
    assert getattr(t, "__name__") == "add"  # noqa: B009 - it is set as functools.wraps sets it


def test_async_function() -> None:
    async def f(x: int) -> int:
        return x + 1

    t = make(f)
    assert t.is_async
    assert not make(add).is_async
    assert asyncio.run(t.run("1")) == 2
    assert asyncio.run(t(1)) == 2


def test_load_upcasts_older_and_refuses_newer() -> None:
    def f(amount: int, currency: str) -> None: ...

    def upcast(old: dict[str, Any], version: int) -> dict[str, Any]:
        assert version == 1
        return old | {"currency": "EUR"}

    t = make(f, version=2, upcast=upcast)
    assert t.load({"amount": 1}, 1) == {"amount": 1, "currency": "EUR"}
    with pytest.raises(NewerPayloadError, match="version 3"):
        t.load({"amount": 1}, 3)
    with pytest.raises(PayloadUnreadableError, match="'currency' is missing"):
        t.load({"amount": 1}, 2)

    def broken(old: dict[str, Any], version: int) -> dict[str, Any]:
        raise KeyError(old["amount"])

    with pytest.raises(PayloadUnreadableError, match="KeyError") as caught:
        make(f, version=2, upcast=broken).load({"amount": 123456}, 1)
    assert "123456" not in str(caught.value)


# -- registry --------------------------------------------------------------------------------- ---


def test_names(registry: Registry) -> None:
    @task("orders.confirm", registry=registry)
    def confirm(order_id: str) -> None: ...

    assert registry.get("orders.confirm") is confirm
    assert registry.resolve("orders.confirm") is confirm
    assert registry.resolve("confirm") is confirm
    assert registry.resolve(confirm.path) is confirm
    assert registry.names() == ["orders.confirm"]
    assert "orders.confirm" in registry
    with pytest.raises(UnknownTaskError, match=r"did you mean 'orders\.confirm'.*JOBQ_APP"):
        registry.get("orders.confrim")
    with pytest.raises(UnknownTaskError):
        registry.get("confirm")


def test_an_ambiguous_short_name(registry: Registry) -> None:
    for name in ("a.run", "b.run"):
        task(name, registry=registry)(lambda: None)
    with pytest.raises(UnknownTaskError, match=r"'a\.run' or 'b\.run'"):
        registry.resolve("run")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "x" * 201, 'a"b'])
def test_wrong_names(name: str) -> None:
    with pytest.raises(ConfigError, match="task name"):
        make(add, name)


def test_a_name_is_taken_once(registry: Registry) -> None:
    task("n", registry=registry)(add)
    again = task("n", registry=registry)(add)  # a reload of the module
    assert registry.get("n") is again

    def other() -> None: ...

    with pytest.raises(ConfigError, match=r"taken by .*add"):
        task("n", registry=registry)(other)
    assert registry.get("n") is again


def test_the_default_name(registry: Registry) -> None:
    assert task(registry=registry)(add).name == f"{__name__}.add"
    with pytest.raises(ConfigError, match="name it"):

        @task(registry=registry)
        def inner() -> None: ...


def test_a_task_of_a_task() -> None:
    with pytest.raises(ConfigError, match="already"):
        make(make(add))


def test_many_threads_register(registry: Registry) -> None:
    gate = threading.Barrier(8)
    errors: list[ConfigError] = []

    def register(n: int) -> None:
        exec(f"def f{n}(): ...", space := {"__name__": "m"})
        gate.wait()
        try:
            make_in(registry, space[f"f{n}"])
        except ConfigError as error:
            errors.append(error)

    threads = [threading.Thread(target=register, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 7
    assert len(registry) == 1


def test_load_app(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_jobs.py").write_text(
        "from __future__ import annotations\nimport jobq\n@jobq.task\ndef ship(order_id: str) -> None: ...\n"
    )
    (tmp_path / "shop_broken.py").write_text("1/0\n")
    (tmp_path / "shop_lacking.py").write_text("import shop_nothing_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert "shop_jobs.ship" in tasks.load_app(["shop_jobs"])
    assert pickle.loads(pickle.dumps(tasks.registry.get("shop_jobs.ship"))).name == "shop_jobs.ship"
    for module, text in (
        ("shop_absent", "'shop_absent': not found"),
        ("shop_broken", "ZeroDivisionError"),
        ("shop_lacking", "shop_nothing_there"),
    ):
        with pytest.raises(ConfigError, match=text):
            tasks.load_app([module])


# -- helpers ---------------------------------------------------------------------------------- ---


def _helper(default: Any = None) -> Helper[..., Any, str]:
    def greet(name: str) -> str:
        return f"hello {name}"

    return Helper(greet, name="greet", default=default, remedy="set GREET")


def test_a_helper_enqueues_when_called(sent: Recorder) -> None:
    assert _helper()(name="x").task == "greet"
    assert sent.requests[0].params == {"name": "x"}


def test_a_helper_without_handler_says_so() -> None:
    with pytest.raises(NoHandlerError, match=r"@greet\.handler, or set GREET"):
        _helper().run(name="x")
    with pytest.raises(NoHandlerError):
        _helper(default=lambda: None).run(name="x")


def test_handler_before_default() -> None:
    seen: list[str] = []
    h = _helper(default=lambda: seen.append)
    h.run(name="a")
    assert seen == ["hello a"]

    @h.handler
    def shout(text: str) -> str:
        return text.upper()

    assert h.run(name="b") == "HELLO B"
    assert h.invoke({"name": "b"}) == "HELLO B"
    assert not h.is_async

    @h.handler
    async def later(text: str) -> str:
        return text

    assert h.is_async
    assert asyncio.run(h.fn(name="c")) == "hello c"
    h.clear_handler()
    assert not h.is_async


# -- the current job -------------------------------------------------------------------------- ---


class Sink:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def progress(self, job_id: str, fraction: float, text: str) -> None:
        self.told.append((job_id, fraction, text))

    def log(self, job_id: str, text: str) -> None:
        self.told.append((job_id, text))

    def cancel_requested(self, job_id: str) -> bool:
        return job_id == "stop"


def test_outside_a_job_nothing_happens() -> None:
    job = current_job()
    job.progress(0.5, "x")
    job.log("x")
    assert (job.job_id, job.cancelled, job.attempt) == ("", False, 1)
    with pytest.raises(ValueError, match="nan"):
        job.progress(float("nan"))


def test_the_context_of_a_job() -> None:
    sink = Sink()
    with running_job(JobContext(job_id="stop", task="t", queue="low", attempt=2, max_attempts=3, sink=sink)):
        job = current_job()
        job.progress(7, "over")
        job.log("line")
        assert job.cancelled
        with running_job(JobContext(job_id="inner", sink=sink)):
            assert current_job().job_id == "inner"
            assert not current_job().cancelled
        assert current_job() is job
    assert sink.told == [("stop", 1.0, "over"), ("stop", "line")]
    assert current_job().job_id == ""


def test_threads_and_asyncio_tasks_have_their_own() -> None:
    seen: dict[str, str] = {}
    gate = threading.Barrier(2)

    def work(name: str) -> None:
        with running_job(JobContext(job_id=name)):
            gate.wait()
            seen[name] = current_job().job_id

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"a": "a", "b": "b"}

    async def step(name: str) -> tuple[str, str]:
        with running_job(JobContext(job_id=name)):
            await asyncio.sleep(0)
            return current_job().job_id, await asyncio.to_thread(lambda: current_job().job_id)

    async def both() -> list[tuple[str, str]]:
        return list(await asyncio.gather(step("c"), step("d")))

    assert asyncio.run(both()) == [("c", "c"), ("d", "d")]


def test_what_tasks_offers_again() -> None:
    assert tasks.Secret is params.Secret
    assert tasks.current_job is context.current_job


def test_an_option_that_is_misspelt_names_the_right_one():
    with pytest.raises(
        TypeError, match=r"task 'x\.y': unknown option max_attemps; did you mean max_attempts\?"
    ):
        task("x.y", registry=Registry(), max_attemps=3)(lambda: None)
    with pytest.raises(TypeError, match="unknown option colour; there are backoff, concurrency"):
        task("x.y", registry=Registry(), colour="red")(lambda: None)
