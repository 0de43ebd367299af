"""Named instructions at which a process of a worker kills itself, once, when a file names one.

Loaded as the application, so the spawner imports it before it forks, and by ``tests.chaos.armed`` into the
supervisor. It wraps what is there: the product has no hooks for this.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hiredis import pack_command

import jobq
from jobq.steps import Batch, Call
from tests.chaos.app import LEDGER
from tests.chaos.ledger import append

FOLDER = "CHAOS_POINTS"
"""Names the folder of the files below."""
ARMED, TAKEN, STRUCK, HOLD = "armed", "taken", "struck", "hold"

Scene = Literal[
    "run", "isolated", "dead", "retry", "held", "scheduled", "abandoned", "family", "stopped", "executor dies",
    "child dies", "starts",
]  # fmt: skip
"""What is done to bring a process to the point; see ``fi_workers``."""

Condition = Callable[..., bool]


@dataclass(frozen=True)
class Point:
    """One instruction.

    Attributes:
        target: ``module:name`` or ``module:Class.name`` of what is wrapped.
        after: The point is after the call instead of before it.
        effect: The task may have had its effect: then one more run is allowed, else none.
        when: Asked with the call's arguments; after the call, with its answer before them.
        act: Done first, with the call's arguments.
    """

    name: str
    scene: Scene
    target: str
    after: bool = False
    effect: bool = False
    when: Condition | None = None
    act: Callable[..., None] | None = None


# -- conditions -----------------------------------------------------------------------------------------------------


def _scripts(plan: Sequence[Call[Any]]) -> set[str]:
    return {call.script for call in plan}


def _claims(_: Any, plan: Sequence[Call[Any]], *__: str) -> bool:
    return "claim" in _scripts(plan)


def _settles(_: Any, plan: Sequence[Call[Any]], *__: str) -> bool:
    return "settle" in _scripts(plan)


def _took(_: Any, __: Any, claim: Any) -> bool:
    return bool(claim.jobs)


def _holds(lane: Any) -> bool:
    return bool(lane._held)


def _send_only(link: Any, plan: Sequence[Call[Any]], *_: str) -> None:
    """The first half of ``Link.exchange``: the server gets the calls, nobody will read what it answers."""
    link._connection.connect()
    packed = [b"".join([pack_command(call.command()) for call in plan])]
    link._connection.send_packed_command(packed, check_health=False)


_SOON_MS = 100
"""What comes due between this look and the step would pass the point."""


def _step(script: str, busy: tuple[str, ...] = ()) -> Condition:
    """Before a store runs this script; ``busy``: a command whose answer is not 0 while there is something to do."""

    def asked(store: Any, step: Any) -> bool:
        if not isinstance(step, Call) or step.script != script:
            return False
        if not busy:
            return True
        now_ms = int(time.time() * 1000) + _SOON_MS
        words = tuple(word.format(ms=now_ms, s=now_ms / 1000) for word in busy)
        return bool(store.run(Batch((words,), lambda replies: replies[0])))

    return asked


def _moved(script: str, found: Callable[[Any], Any]) -> Condition:
    """After a store ran this script, and it did something."""
    return lambda answer, _, step: isinstance(step, Call) and step.script == script and bool(found(answer))


IN_TASK = "tests.chaos.points:effect"
"""The task names its points itself."""

_STORE = "jobq.store:Store.run"
_EXCHANGE = "jobq.store:Link.exchange"
_LANE = "jobq.worker.executor:LaneExecutor"
_RUNNER = "jobq.worker.runner:Runner"
_DUE = ("ZCOUNT", "rq:scheduled:high", "-inf", "{s}")
_EXPIRED = ("ZCOUNT", "jobq:leases", "-inf", "{ms}")
_CHILDREN = ("ZCARD", "jobq:after")

POINTS: tuple[Point, ...] = (
    # An executor and a job of its threads.
    Point("claim: before it is sent", "run", _EXCHANGE, when=_claims),
    Point("claim: sent, reply unread", "run", _EXCHANGE, when=_claims, act=_send_only),
    Point("claim: answered", "run", f"{_LANE}._take", when=_took),
    Point("claim: leases in the slot table", "run", f"{_LANE}._assign", after=True),
    Point("run: before the payload is verified", "run", f"{_RUNNER}.run"),
    Point("run: verified, before the task", "run", f"{_RUNNER}._open", after=True),
    Point("thread: before the effect", "run", IN_TASK),
    Point("thread: after the effect", "run", IN_TASK, effect=True),
    Point("run: outcome known", "run", f"{_RUNNER}.run", after=True, effect=True),
    Point("run: report in the inbox", "run", "jobq.worker.inbox:Inbox.finished", after=True, effect=True),
    Point("settle: before it is sent", "run", _EXCHANGE, effect=True, when=_settles),
    Point("settle: sent, reply unread", "run", _EXCHANGE, effect=True, when=_settles, act=_send_only),
    Point("settle: answered", "run", f"{_LANE}._settled", effect=True),
    Point("settle: slot released", "run", f"{_LANE}._settled", after=True, effect=True),
    Point("retry: before it is sent", "retry", _EXCHANGE, effect=True, when=_settles),
    Point("retry: sent, reply unread", "retry", _EXCHANGE, effect=True, when=_settles, act=_send_only),
    Point("dead letter: before it is sent", "dead", _EXCHANGE, effect=True, when=_settles),
    Point("dead letter: sent, reply unread", "dead", _EXCHANGE, effect=True, when=_settles, act=_send_only),
    Point("drain: before jobs are handed back", "stopped", f"{_LANE}._drain", when=_holds),
    Point(
        "drain: after jobs are handed back", "stopped", f"{_LANE}._drain", after=True,
        when=lambda _, lane: _holds(lane),
    ),
    # A job child, and its executor.
    Point("child: forked, before it says hello", "child dies", "jobq.worker.child:_Line.hello"),
    Point("child: has the job", "isolated", "jobq.worker.child:_run"),
    Point("child: before the effect", "isolated", IN_TASK),
    Point("child: after the effect", "isolated", IN_TASK, effect=True),
    Point("child: before it reports", "isolated", "jobq.worker.child:_Line.done", effect=True),
    Point("child: has reported", "isolated", "jobq.worker.child:_Line.done", after=True, effect=True),
    Point(
        "child's executor: job handed over", "isolated", "jobq.worker.inbox:Inbox.started", after=True, effect=True
    ),
    Point("child's executor: has the report", "isolated", "jobq.worker.children:ChildExecutor._done", effect=True),
    # The spawner.
    Point("spawner: before it forks", "executor dies", "jobq.worker.spawner:Spawner._spawn"),
    Point("spawner: has forked", "executor dies", "jobq.worker.spawner:Spawner._spawn", after=True),
    Point("spawner: has reaped, told nobody", "executor dies", "jobq.worker.spawner:_kill_group"),
    # The supervisor and its keeper.
    Point("dead executor: before its jobs are settled", "executor dies", "jobq.worker.maintenance:Keeper._settle"),
    Point(
        "dead executor: after its jobs are settled", "executor dies", "jobq.worker.maintenance:Keeper._settle",
        after=True,
    ),
    Point("dead executor: before its successor", "executor dies", "jobq.worker.supervisor:Supervisor._start_lane"),
    Point("heartbeat: before", "held", _STORE, when=_step("heartbeat")),
    Point("heartbeat: after", "held", _STORE, after=True, when=_moved("heartbeat", lambda _: True)),
    Point("promote: before", "scheduled", _STORE, when=_step("promote", _DUE)),
    Point("promote: after", "scheduled", _STORE, after=True, when=_moved("promote", lambda answer: answer.count)),
    Point("rescue: before", "abandoned", _STORE, when=_step("rescue", _EXPIRED)),
    Point("rescue: after", "abandoned", _STORE, after=True, when=_moved("rescue", lambda answer: answer.moved)),
    Point("release of dependents: before", "family", _STORE, when=_step("release", _CHILDREN)),
    Point("release of dependents: after", "family", _STORE, after=True, when=_moved("release", bool)),
    Point("prune: before", "starts", _STORE, when=_step("prune")),
    Point("prune: after", "starts", _STORE, after=True, when=_moved("prune", lambda _: True)),
    Point("register: before", "starts", _STORE, when=_step("register")),
    Point("register: after", "starts", _STORE, after=True, when=_moved("register", lambda _: True)),
    Point("sign-off: before", "stopped", "jobq.worker.maintenance:Keeper._sign_off", effect=True),
    Point("sign-off: after", "stopped", "jobq.worker.maintenance:Keeper._sign_off", after=True, effect=True),
)  # fmt: skip


# -- the task -------------------------------------------------------------------------------------------------------


@jobq.task("chaos.effect", priority="high", max_attempts=1, backoff=jobq.Fixed(0.05), timeout=60)
def effect(token: str, place: str = "thread", fails: int = 0) -> None:
    """Has its effect, one line in the ledger, once no file holds it; its first ``fails`` attempts then fail."""
    context = jobq.current_job()

    def note(word: str) -> None:
        line = f"{word} {token} {context.job_id} {context.attempt} {os.getpid()} {time.time():.6f}"
        append(os.environ[LEDGER], line)

    note("start")
    while _named(HOLD, token):
        time.sleep(0.01)
    strike(f"{place}: before the effect")
    note("effect")
    strike(f"{place}: after the effect")
    note("end")
    if context.attempt <= fails:
        raise RuntimeError("this attempt fails")


# -- the blow -------------------------------------------------------------------------------------------------------


def _named(file: str, what: str) -> bool:
    try:
        return (Path(os.environ[FOLDER]) / file).read_text() == what
    except FileNotFoundError:
        return False


def strike(name: str, act: Callable[[], None] = lambda: None) -> None:
    """Kill this process, after ``act``, if its turn has come and no other process was quicker."""
    if not _named(ARMED, name):
        return
    folder = Path(os.environ[FOLDER])
    try:
        (folder / ARMED).rename(folder / TAKEN)
    except FileNotFoundError:
        return
    act()
    append(folder / STRUCK, f"{name}|{os.getpid()}")
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap(owner: Any, name: str, points: Sequence[Point]) -> None:
    original = getattr(owner, name)
    before = [point for point in points if not point.after]
    after = [point for point in points if point.after]

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for point in before:
            if _named(ARMED, point.name) and (point.when is None or point.when(*args, **kwargs)):
                act = functools.partial(point.act, *args, **kwargs) if point.act else lambda: None
                strike(point.name, act)
        answer = original(*args, **kwargs)
        for point in after:
            if _named(ARMED, point.name) and (point.when is None or point.when(answer, *args, **kwargs)):
                strike(point.name)
        return answer

    setattr(owner, name, wrapped)


def _module(name: str) -> Any:
    """The module that runs under this name: of ``python -m name`` that is ``__main__``."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return main if spec is not None and spec.name == name else importlib.import_module(name)


def owner_of(target: str) -> tuple[Any, str]:
    """What holds the target, and its name there.

    Raises:
        AttributeError: There is no such thing: a point that nobody can reach proves nothing.
    """
    module, _, path = target.partition(":")
    *classes, name = path.split(".")
    owner = _module(module)
    for each in classes:
        owner = getattr(owner, each)
    getattr(owner, name)
    return owner, name


def install() -> None:
    """Wrap every target."""
    by_target: dict[str, list[Point]] = {}
    for point in POINTS:
        if point.target != IN_TASK:
            by_target.setdefault(point.target, []).append(point)
    for target, points in by_target.items():
        _wrap(*owner_of(target), points)


if FOLDER in os.environ:  # in a worker; whoever looks at the table only is left alone
    install()
