"""Dead letters in a file: archived, so that Redis need not hold them, and restored from there.

A file of JSON lines, one dead letter each, that only its owner can read. It holds what Redis does, payloads as they are
sealed and signed, so it is to be kept as safely as Redis is. A dead letter leaves Redis only when its line is on disk;
whoever archives into the same file again after a crash in between writes no line twice.
"""

from __future__ import annotations

import fcntl
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jobq import tags
from jobq.control import BulkReport, Progress, delete_many, nobody, together
from jobq.dead_letters import chunks
from jobq.errors import ConflictError
from jobq.job import ID_PATTERN, Job, JobState
from jobq.keys import Keys
from jobq.queues import QueueSpec
from jobq.replies import clean_text
from jobq.rq_bridge import JOB_FIELDS, job_from_fields
from jobq.steps import Arg, Batch, Call, Pause, Plan, script_head
from jobq.units import clock_ms

_VERSION = 1
_AT_ONCE = 25
"""Dead letters that are restored in one round trip: each sends the whole job."""


@dataclass(frozen=True, slots=True)
class Line:
    """One archived dead letter.

    Attributes:
        job: Its hash, field by field.
        attempts: Records of its attempts, oldest first.
        result: The last entry of its results stream: names and values in turn.
        log: What the task said.
    """

    id: str
    job: Mapping[str, bytes]
    attempts: tuple[bytes, ...] = ()
    result: tuple[bytes, ...] = ()
    log: tuple[bytes, ...] = ()

    @property
    def ended(self) -> str:
        """When it died, as its hash says: a job that dies again is another dead letter."""
        return clean_text(self.job.get("ended_at"))

    @property
    def queue(self) -> str:
        """Name of its queue."""
        return clean_text(self.job.get("origin"))

    @property
    def labels(self) -> tuple[tuple[str, ...], str | None]:
        """Its tags, and its correlation id."""
        job = self._read()
        return job.tags, job.correlation_id

    def _read(self) -> Job:
        job = job_from_fields(self.id, [self.job.get(name) for name in JOB_FIELDS])
        assert job is not None, "its hash is not empty"
        return job

    def encode(self) -> bytes:
        """The line for the file; what comes before ``job`` is for people and their tools."""
        found = self._read()
        record = {
            "v": _VERSION,
            "id": self.id,
            "task": found.task,
            "queue": found.queue,
            "died_at": self.ended,
            "reason": found.dead_reason,
            "attempts": found.attempt,
            "fingerprint": found.error_fingerprint,
            "job": {name: _text(value) for name, value in self.job.items()},
            "history": [_text(value) for value in self.attempts],
            "result": [_text(value) for value in self.result],
            "log": [_text(value) for value in self.log],
        }
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Line:
        """The dead letter of a line.

        Raises:
            ValueError: It is none.
        """
        record = json.loads(data)
        if not isinstance(record, dict) or record.get("v") != _VERSION:
            raise ValueError("no dead letter of this version")
        try:
            job = {str(name): _bytes(value) for name, value in record["job"].items()}
            parts = (tuple(_bytes(value) for value in record[name]) for name in ("history", "result", "log"))
            line = cls(record["id"], job, *parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("a part of the dead letter is missing") from error
        if not (isinstance(line.id, str) and ID_PATTERN.fullmatch(line.id) and line.queue):
            raise ValueError("its id or its queue is missing")
        return line


def _text(value: bytes) -> str | dict[str, str]:
    """Bytes as JSON can hold them, readable where they are text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return b64decode(value["base64"])


# --------------------------------------------------------------------------- the file


def read_archive(path: Path) -> Iterator[Line]:
    """The dead letters of a file, in its order; a last line that a crash cut off was never taken out of Redis.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no archive; the message names the line.
    """
    with path.open("rb") as file:
        yield from _lines(file, path)


def _lines(file: BinaryIO, path: Path) -> Iterator[Line]:
    for number, data in enumerate(file, 1):
        if not data.endswith(b"\n"):
            return
        try:
            yield Line.decode(data)
        except ValueError as error:
            raise ValueError(f"{path} is no archive of dead letters: line {number}: {error}") from error


class ArchiveFile:
    """An archive that is open for more; made by :func:`open_archive`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._known: set[tuple[str, str]] = set()
        whole = 0
        for line in _lines(file, path):
            self._known.add((line.id, line.ended))
            whole = file.tell()
        file.truncate(whole)  # a line that a crash cut off
        file.seek(whole)

    def add(self, lines: Iterable[Line]) -> None:
        """Write those that the file does not have yet; they are on disk when this returns."""
        new = [line for line in lines if (line.id, line.ended) not in self._known]
        if not new:
            return
        self._file.write(b"".join(line.encode() for line in new))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._known.update((line.id, line.ended) for line in new)


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveFile]:
    """The file, made if it is not there, and nobody else's meanwhile.

    Raises:
        OSError: It cannot be read or written.
        ConflictError: Somebody else is archiving into it.
        ValueError: It is there, and no archive.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"{path} is being written by another archive run: wait for it") from error
        _sync_folder(path.parent)
        yield ArchiveFile(file, path)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems refuse it
            os.fsync(handle)
    finally:
        os.close(handle)


# --------------------------------------------------------------------------- plans


def archive_plan(
    keys: Keys, ids: Sequence[str], path: Path, *, rate: float | None = None, progress: Progress = nobody
) -> Plan[BulkReport]:
    """Move dead letters into a file, up to 100 at a time: read, on disk, then out of Redis.

    What was replayed meanwhile stays in Redis, even when it has died again.
    """
    report = BulkReport(matched=len(ids))
    with open_archive(path) as file:
        for chunk, pause in chunks(ids, rate):
            lines = yield from _read(keys, chunk)
            file.add(lines.values())
            words = {job_id: "gone" if ID_PATTERN.fullmatch(job_id) else "unreadable" for job_id in chunk}
            if lines:
                stamped = [f"{line.id}:{line.ended}" for line in lines.values()]
                words.update(zip(lines, (yield delete_many(keys, stamped, (JobState.DEAD,))), strict=True))
            report.add(chunk, list(words.values()), ("deleted",))
            progress(len(chunk))
            if pause:
                yield Pause(pause)
    return report


def _read(keys: Keys, ids: Sequence[str]) -> Plan[dict[str, Line]]:
    """Those of the jobs that are there and dead, in one round trip."""
    commands: list[tuple[Any, ...]] = []
    for job_id in ids:
        commands += (
            ("HGETALL", keys.job(job_id)),
            ("LRANGE", keys.attempts(job_id), 0, -1),
            ("XREVRANGE", keys.results(job_id), "+", "-", "COUNT", 1),
            ("LRANGE", keys.log(job_id), 0, -1),
        )
    replies = yield Batch(tuple(commands))
    lines: dict[str, Line] = {}
    for place, job_id in enumerate(ids):
        fields, attempts, entries, log = replies[4 * place : 4 * place + 4]
        job = {clean_text(name): value for name, value in _pairs(fields)}
        found = job_from_fields(job_id, [job.get(name) for name in JOB_FIELDS])
        # What is no id of a job could not be restored.
        if found is not None and found.state is JobState.DEAD and ID_PATTERN.fullmatch(job_id):
            result = [part for pair in _pairs(entries[0][1]) for part in pair] if _listed(entries) else []
            lines[job_id] = Line(job_id, job, _listed(attempts), tuple(result), _listed(log))
    return lines


def _listed(reply: Any) -> tuple[Any, ...]:
    """A list's reply; a key of the wrong type reads as empty."""
    return tuple(reply) if isinstance(reply, list) else ()


def _pairs(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    """A hash's reply: a dict, or names and values in turn."""
    if isinstance(reply, Mapping):
        return reply.items()
    if isinstance(reply, list | tuple):
        return zip(reply[::2], reply[1::2], strict=True)
    return ()


def restore_plan(
    keys: Keys, specs: Mapping[str, QueueSpec], lines: Sequence[Line], *, progress: Progress = nobody
) -> Plan[BulkReport]:
    """Put archived dead letters back, dead, each kept as long as its queue keeps one that died now."""
    report = BulkReport(matched=len(lines))
    now_ms = clock_ms()
    for start in range(0, len(lines), _AT_ONCE):
        chunk = lines[start : start + _AT_ONCE]
        named = [(line.id, found_by) for line in chunk if (found_by := tags.names(keys, *line.labels))]
        if named:
            yield tags.index(named, now_ms, now_ms)
        steps = [_restore(keys, specs, line) for line in chunk]
        words = yield together(steps)
        for place, word in enumerate(words):
            if word == "unreadable":  # Redis refused it; alone, the error says why
                words[place] = yield steps[place]
        report.add([line.id for line in chunk], words, ("restored",))
        progress(len(chunk))
    return report


def _restore(keys: Keys, specs: Mapping[str, QueueSpec], line: Line) -> Call[str]:
    spec = specs.get(line.queue) or QueueSpec(line.queue)
    names = (
        keys.job(line.id),
        keys.failed(line.queue),
        keys.attempts(line.id),
        keys.results(line.id),
        keys.log(line.id),
        keys.queues,
    )
    args: list[Arg] = [*script_head(keys, None), line.id, line.queue, spec.keep_dead.age_s]
    fields = [part for pair in line.job.items() for part in pair]
    for parts in (fields, line.attempts, line.result, line.log):
        args += (len(parts), *parts)
    return Call("restore", names, tuple(args), clean_text)
