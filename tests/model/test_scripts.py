"""Each script is run against a reference, by a machine that fails when it never does, or there is a reason why not."""

from __future__ import annotations

from pathlib import Path

from jobq import lua
from tests.model.player import Player
from tests.model.test_admission import AdmissionMachine
from tests.model.test_limits import LimitsMachine
from tests.model.test_schedules import SchedulesMachine
from tests.model.test_stateful import Machine
from tests.model.test_turns import TurnsMachine

MACHINES: tuple[type[Player | Machine], ...] = (
    Machine,
    AdmissionMachine,
    LimitsMachine,
    SchedulesMachine,
    TurnsMachine,
)

ELSEWHERE = {"hold": "test_overrides.py", "override": "test_overrides.py"}
"""Scripts that have a reference of their own in another file."""

_READS = "reads and writes nothing of a job"
_DAMAGE = "looks for damage, which no sequence of steps makes: tests/lua/test_audit.py"
_WORKER = "writes or removes a worker's own hash as it is told, and moves no job: tests/lua/test_moves.py"
LEFT_OUT = {
    "allowed": f"{_READS}: it tries what this Redis user may do",
    "audit_entries": _DAMAGE,
    "audit_jobs": _DAMAGE,
    "audit_keys": _DAMAGE,
    "audit_leases": _DAMAGE,
    "audit_lists": _DAMAGE,
    "audit_members": _DAMAGE,
    "audit_schedules": _DAMAGE,
    "dead_groups": f"{_READS}: it counts dead letters",
    "log": "adds lines to a list that no other script reads, behind the fence of progress: tests/lua/test_leases.py",
    "obeyed": "deletes one field if it has one value",
    "register": _WORKER,
    "restore": "writes one dead letter as it was archived: tests/integration/test_archive.py",
    "rq_slots": "frees what rq's own limits hold, which none of our jobs has: tests/interop/test_rate_limit.py",
    "unregister": _WORKER,
}
"""Scripts that no machine runs, and why."""


def test_every_script_has_a_reference_or_a_reason() -> None:
    covered = frozenset[str]().union(*(machine.SCRIPTS for machine in MACHINES))
    assert not covered & (LEFT_OUT.keys() | ELSEWHERE.keys()), "what is run needs no reason"
    assert sorted(covered | LEFT_OUT.keys() | ELSEWHERE.keys()) == lua.names()


def test_what_has_a_reference_elsewhere_is_run_there() -> None:
    for script, name in ELSEWHERE.items():
        assert f"calls.{script}(" in (Path(__file__).parent / name).read_text()
