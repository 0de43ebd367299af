"""Editing a dead letter: its params as they were, and the payload that replaces them, signed for the same job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobq import calls, dedup, limits
from jobq.codec import Codec
from jobq.dead_letters import get_plan, replay_conflict
from jobq.errors import ConflictError, PayloadError, PayloadUnreadableError
from jobq.job import Job, JobOwner
from jobq.job_reading import job_plan, not_found
from jobq.keys import Keys
from jobq.steps import Batch, Plan
from jobq.tasks import Registry, Task

MASK = "•••"
"""Stands for a secret: a draft never shows one, and one that still reads so stays as it is."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A dead letter's params, to be edited.

    Attributes:
        params: JSON values by name; each secret is :data:`MASK`.
        secrets: Names of the secret params.
    """

    job_id: str
    task: str
    params: Mapping[str, Any]
    secrets: frozenset[str]


@dataclass(frozen=True, slots=True)
class Editor:
    """Reads and writes payloads of dead letters."""

    keys: Keys
    codec: Codec
    registry: Registry
    owner: JobOwner | None

    def draft(self, job_id: str) -> Plan[Draft]:
        """The params of a dead letter.

        Raises:
            JobNotFoundError: There is no such job.
            ConflictError: It is not dead.
            CodecError: Its payload cannot be verified or read; then there is nothing to edit.
            UnknownTaskError: The application that is loaded here does not have its task.
        """
        task, params, _ = yield from self._read(job_id)
        shown = {name: MASK if name in task.secrets else value for name, value in params.items()}
        return Draft(job_id, task.name, shown, task.secrets)

    def replay(self, job_id: str, changes: Mapping[str, Any], *, whole: bool = False) -> Plan[Job]:
        """Replay a dead letter with other params, under the same id, in one step.

        Args:
            changes: New values by name.
            whole: They are all there are: a param that is missing is dropped.
        Raises:
            PayloadError: The task does not take these params; nothing was changed.
            ConflictError: It is not dead, its dedup key is held, or a changed param is a part of its dedup key or of
                its limits' keys.
        """
        task, params, version = yield from self._read(job_id)
        kept = {name: params[name] for name, value in changes.items() if value == MASK and name in params}
        new = {**({} if whole else params), **changes, **kept}
        unknown = sorted(set(new) - set(task.params_model.model_fields))
        if unknown:
            raise PayloadError(
                f"task {task.name!r} has no param {unknown[0]!r}", job_id=job_id, task=task.name
            )
        before, after = self._loaded(task, params, version), self._loaded(task, new, version)
        if after is None:
            raise self._misfit(task, new, version, job_id)
        if before is not None and _bound(task, before) != _bound(task, after):
            raise ConflictError(
                f"job {job_id} cannot change what its dedup key or its limits are made of: enqueue it anew",
                job_id=job_id,
            )
        data = self.codec.encode(
            task=task.name, version=task.version, params=task.dump(after), secrets=task.secrets, job_id=job_id
        )
        (word,) = yield calls.replay(self.keys, [job_id], {job_id: data})
        if word == "gone":
            raise not_found(job_id)
        if word != "queued":
            raise replay_conflict(job_id, word)
        return (yield from job_plan(self.keys, job_id, self.owner))

    def _read(self, job_id: str) -> Plan[tuple[Task[..., Any], dict[str, Any], int]]:
        yield from get_plan(self.keys, job_id, self.owner)
        data = (yield Batch((("HGET", self.keys.job(job_id), "data"),)))[0]
        if not isinstance(data, bytes):
            raise not_found(job_id)
        envelope = self.codec.decode(data, job_id=job_id)
        return self.registry.resolve(envelope.task), envelope.params, envelope.version

    @staticmethod
    def _misfit(task: Task[..., Any], params: Mapping[str, Any], version: int, job_id: str) -> PayloadError:
        """The error that says what does not fit."""
        try:
            task.load(params, version)
        except PayloadUnreadableError as error:
            return PayloadError(f"{error}; nothing was changed", job_id=job_id, task=task.name)
        return PayloadError(f"task {task.name!r} does not take these params", job_id=job_id, task=task.name)

    @staticmethod
    def _loaded(task: Task[..., Any], params: Mapping[str, Any], version: int) -> dict[str, Any] | None:
        """The params as the function takes them; None when they do not fit it."""
        try:
            return task.load(params, version)
        except PayloadUnreadableError:
            return None


def _bound(task: Task[..., Any], params: Mapping[str, Any]) -> tuple[str, str]:
    """What a job keeps in Redis of its params: its dedup key and its gates."""
    spec = task.spec
    key = dedup.render(spec.dedup.template, params) if spec.dedup is not None else ""
    return key, limits.task_gates(task.name, "", spec.rate, spec.concurrency, params)
