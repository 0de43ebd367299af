"""What a task says with ``ctx.log``: a ring of its last lines beside the job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jobq.job_reading import not_found, valid_id
from jobq.keys import Keys
from jobq.replies import as_text
from jobq.steps import Arg, Batch, Call, Plan, script_head

MOST_LINES = 200
"""Lines that a job's log keeps; the oldest go first."""

LONGEST_LINE = 500
"""Characters of a line; the rest is cut off."""

RUNNING_S = 2_678_400
"""Seconds that the log of a job outlives its last line before the job has ended: longer than any run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a job's log.

    Attributes:
        number: Counted from 1 over all attempts; a gap means that older lines have gone.
        at: When the task said it, by its machine's clock.
        attempt: The attempt that said it.
    """

    number: int
    at: datetime
    attempt: int
    text: str


def encode_line(now_ms: int, text: str) -> str:
    """A line as :func:`add_lines` takes it."""
    cut = text[:LONGEST_LINE].encode("utf-8", "replace").decode()
    return json.dumps([now_ms, cut], ensure_ascii=False, separators=(",", ":"))


class _Whole(Call[bool]):
    """Sent as the script itself, not by its digest.

    An unknown digest is found out too late: the same write also holds the job's settle, and without a lease a line is
    refused.
    """

    __slots__ = ()

    def command(self) -> tuple[Arg, ...]:
        return self.full_command()


def add_lines(
    keys: Keys, job_id: str, token: str, lines: Sequence[str], keep_s: int = RUNNING_S
) -> Call[bool]:
    """Add lines to the log of a running job; False when its lease is lost.

    Args:
        lines: Of which the last 200 count; none: only ``keep_s`` does.
        keep_s: Seconds that the whole log is kept from now on.
    """
    args = (*script_head(keys, None), f"{job_id}:{token}", MOST_LINES, keep_s, *lines[-MOST_LINES:])
    return _Whole("log", (keys.job(job_id), keys.leases, keys.log(job_id)), args, bool, idempotent=False)


def lines_plan(keys: Keys, job_id: str, after: int = 0) -> Plan[list[LogLine]]:
    """The lines of a job's log with a number above ``after``, oldest first.

    Raises:
        JobNotFoundError: There is no such job.
    """
    found, entries = yield Batch(
        (("EXISTS", keys.job(valid_id(job_id))), ("LRANGE", keys.log(job_id), 0, -1))
    )
    if not found:
        raise not_found(job_id)
    lines = [_line(as_text(entry)) for entry in ([] if isinstance(entries, Exception) else entries)]
    return [line for line in lines if line is not None and line.number > after]


def _line(entry: str) -> LogLine | None:
    number, attempt, rest = (*entry.split(" ", 2), "", "")[:3]
    try:
        ms, text = json.loads(rest)
        return LogLine(
            number=int(number),
            at=datetime.fromtimestamp(ms / 1000, tz=UTC),
            attempt=int(attempt),
            text=str(text),
        )
    except (ValueError, TypeError, OverflowError, OSError):
        return None  # somebody else's
