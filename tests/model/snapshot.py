"""All keys of a server in one reading, and what they say about jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

REGISTRIES = ("scheduled", "finished", "failed", "deferred", "canceled")
TERMINAL = frozenset({"finished", "failed", "canceled"})
LIVE = frozenset({"queued", "scheduled", "started", "deferred"})

READ = """
local read = {
  hash = function(key) return redis.call('HGETALL', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  string = function(key) return { redis.call('GET', key) } end,
  stream = function(key) return { tostring(redis.call('XLEN', key)) } end,
}
local out = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  out[#out + 1] = { key, kind, redis.call('PTTL', key), read[kind](key) }
end
return out
"""

_EXPIRE = "for i = 1, #ARGV, 2 do redis.call('EXPIRE', ARGV[i], ARGV[i + 1]) end"


def run(client: Any, before: Snapshot, *command: Any, passed_s: int = 0) -> tuple[Any, Snapshot]:
    """Run a command in a time that stands still; its reply, and all keys after it.

    The expiries are first set to what they were when they were last read, less ``passed_s``: all are whole seconds,
    and so the time that the test itself takes never counts.
    """
    pipe = client.pipeline(transaction=True)
    ends = [item for key, left in before.left_s.items() for item in (key, left - passed_s)]
    pipe.eval(_EXPIRE, 0, *ends)
    if command:
        pipe.execute_command(*command)
    pipe.eval(READ, 0)
    replies = pipe.execute()
    return replies[1], Snapshot.parse(replies[-1])


@dataclass(frozen=True)
class Snapshot:
    """What a server holds.

    Attributes:
        values: By key: a hash as dict, a list as list, a sorted set as dict of scores in order, a set as set, a
            string as str, a stream as its length.
        left_s: By key with an expiry: seconds left, rounded up.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    left_s: Mapping[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, reply: list[Any]) -> Snapshot:
        """The reply of the script that reads all."""
        values: dict[str, Any] = {}
        left: dict[str, int] = {}
        for raw_key, raw_kind, ms, raw in reply:
            key, kind, items = _text(raw_key), _text(raw_kind), [_text(item) for item in raw]
            if kind == "hash":
                values[key] = dict(zip(items[::2], items[1::2], strict=True))
            elif kind == "zset":
                values[key] = {
                    member: float(score) for member, score in zip(items[::2], items[1::2], strict=True)
                }
            elif kind == "set":
                values[key] = set(items)
            elif kind == "list":
                values[key] = items
            else:
                values[key] = items[0]
            if ms >= 0:
                left[key] = -(-ms // 1000)
        return cls(values, left)

    def frozen(self) -> tuple[Any, ...]:
        """All values, as a key of a dict."""
        return tuple((key, _frozen(self.values[key])) for key in sorted(self.values))

    def zset(self, key: str) -> dict[str, float]:
        """A sorted set's scores; empty when it does not exist."""
        found: dict[str, float] = self.values.get(key, {})
        return found

    def waiting(self, queue: str) -> list[str]:
        """A queue's list of ids."""
        found: list[str] = self.values.get(f"rq:queue:{queue}", [])
        return found

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        """All job hashes that have a status, by id."""
        return {
            job_id: value
            for key, value in self.values.items()
            if (job_id := key.removeprefix("rq:job:")) != key and ":" not in job_id and "status" in value
        }

    @cached_property
    def queues(self) -> set[str]:
        """Names of all queues that any job or list names."""
        names = {value.get("origin", "") for value in self.hashes.values()}
        kinds = ("queue", "wip", *REGISTRIES)
        return names | {
            key.split(":", 2)[2] for key in self.values if key.split(":")[1] in kinds and key[:3] == "rq:"
        }

    @cached_property
    def leases(self) -> dict[str, list[str]]:
        """Tokens that hold a lease, by job id."""
        found: dict[str, list[str]] = {}
        for member in self.zset("jobq:leases"):
            job_id, _, token = member.partition(":")
            found.setdefault(job_id, []).append(token)
        return found

    def status(self, job_id: str) -> str | None:
        """rq's word for a job; None when there is no such job."""
        found = self.hashes.get(job_id)
        return None if found is None else found["status"]

    def number(self, job_id: str, name: str) -> int:
        """A counter of the job hash; 0 when absent."""
        return int(self.hashes.get(job_id, {}).get(name, "0"))

    def wip(self) -> Iterator[tuple[str, str, str, float]]:
        """Queue, job id, token and score of each member of rq's started registries."""
        for queue in self.queues:
            for member, score in self.zset(f"rq:wip:{queue}").items():
                job_id, _, token = member.partition(":")
                yield queue, job_id, token, score


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    if isinstance(value, set):
        return tuple(sorted(value))
    return tuple(value) if isinstance(value, list) else value


def _text(value: bytes) -> str:
    return value.decode("latin-1")  # rq compresses payloads
