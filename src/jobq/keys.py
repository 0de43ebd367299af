"""The name of every Redis key: rq's under its prefix, our own under ``jobq:``."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_PREFIX = "rq"

SUSPECTS = "~suspect"
"""The bucket of parked jobs that are to run apart."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names for one prefix.

    Args:
        prefix: rq's key prefix. With another than ``rq`` our own keys start with ``jobq:<prefix>:``, so that
            two prefixes in one Redis never meet.
    """

    prefix: str = DEFAULT_PREFIX

    @property
    def p(self) -> str:
        """What rq's keys start with, colon included."""
        return f"{self.prefix}:"

    @property
    def n(self) -> str:
        """What our own keys start with, colon included."""
        return "jobq:" if self.prefix == DEFAULT_PREFIX else f"jobq:{self.prefix}:"

    # ------------------------------------------------------------------ rq's keys

    @property
    def queues(self) -> str:
        """Set of the queues' keys."""
        return f"{self.prefix}:queues"

    @property
    def rate_limits(self) -> str:
        """Set: names of rq's own rate limits."""
        return f"{self.prefix}:rl-keys"

    @property
    def suspended(self) -> str:
        """String; exists while ``rq suspend`` holds."""
        return f"{self.prefix}:suspended"

    @property
    def workers(self) -> str:
        """Set of the workers' keys."""
        return f"{self.prefix}:workers"

    def job(self, job_id: str) -> str:
        """Hash: the job."""
        return f"{self.prefix}:job:{job_id}"

    def queue(self, queue: str) -> str:
        """List: ids of queued jobs, next at the left."""
        return f"{self.prefix}:queue:{queue}"

    def wip(self, queue: str) -> str:
        """Sorted set of ``<id>:<token>``: rq's registry of started jobs."""
        return f"{self.prefix}:wip:{queue}"

    def finished(self, queue: str) -> str:
        """Sorted set: succeeded ids, scored with the second they may be deleted."""
        return f"{self.prefix}:finished:{queue}"

    def failed(self, queue: str) -> str:
        """Sorted set: dead ids, scored with the second they may be deleted."""
        return f"{self.prefix}:failed:{queue}"

    def scheduled(self, queue: str) -> str:
        """Sorted set: ids that wait for a time, scored with the due second and its fraction."""
        return f"{self.prefix}:scheduled:{queue}"

    def deferred(self, queue: str) -> str:
        """Sorted set: ids that wait for parents, or are parked; scored with the second entered."""
        return f"{self.prefix}:deferred:{queue}"

    def canceled(self, queue: str) -> str:
        """Sorted set: cancelled ids, scored with the second entered."""
        return f"{self.prefix}:canceled:{queue}"

    def results(self, job_id: str) -> str:
        """Stream: the result or the last error."""
        return f"{self.prefix}:results:{job_id}"

    def dependents(self, job_id: str) -> str:
        """Set: the job's children."""
        return f"{self.prefix}:job:{job_id}:dependents"

    def dependencies(self, job_id: str) -> str:
        """Set: the job's parents. The double colon is rq's."""
        return f"{self.prefix}:job::{job_id}:dependencies"

    def worker(self, name: str) -> str:
        """Hash: a worker as ``rq info`` reads it."""
        return f"{self.prefix}:worker:{name}"

    # ------------------------------------------------------------------ our keys

    @property
    def leases(self) -> str:
        """Sorted set of ``<id>:<token>``, scored with the expiry in ms of Redis' clock."""
        return f"{self.n}leases"

    @property
    def cancels(self) -> str:
        """Set: ids of running jobs that were asked to stop."""
        return f"{self.n}cancels"

    @property
    def after(self) -> str:
        """Sorted set: settled ids whose children are still to be released."""
        return f"{self.n}after"

    @property
    def quarantine(self) -> str:
        """Sorted set: ids whose hash cannot be read; scored with the ms found."""
        return f"{self.n}quarantine"

    @property
    def pulse(self) -> str:
        """Hash: ``t`` last rescue pass, ``hold`` no rescue before, ``f`` last look at foreign runs, ``m`` at memory."""
        return f"{self.n}pulse"

    @property
    def cancel_channel(self) -> str:
        """Pub/sub: ids of running jobs, the moment they are asked to stop."""
        return f"{self.n}cancel"

    @property
    def wake_channel(self) -> str:
        """Pub/sub: names of queues that were paused, resumed or limited."""
        return f"{self.n}wake"

    def rq_commands(self, worker: str) -> str:
        """Pub/sub: rq's commands to a worker of this name."""
        return f"{self.prefix}:pubsub:{worker}"

    @property
    def gates(self) -> str:
        """Sorted set: gates at which jobs wait, scored with the ms at which they may open."""
        return f"{self.n}gates"

    @property
    def limits(self) -> str:
        """String: the limits that operators have set for tasks, see ``jobq.overrides``."""
        return f"{self.n}limits"

    def gate(self, gate: str) -> str:
        """Sorted set: ids that wait at a gate, in order."""
        return f"{self.n}gate:{gate}"

    def blocked(self, queue: str) -> str:
        """Sorted set: ids of a queue that wait at any gate, scored with the ms since when."""
        return f"{self.n}blocked:{queue}"

    def order(self, queue: str) -> str:
        """Sorted set: queued ids that have an order and no tenant, scored with their place."""
        return f"{self.n}order:{queue}"

    @property
    def schedules(self) -> str:
        """Hash: every schedule's name; the reason it cannot be fired, empty when it is in order."""
        return f"{self.n}schedules"

    @property
    def due(self) -> str:
        """Sorted set: names of schedules, scored with the ms at which they are looked at next."""
        return f"{self.n}due"

    def schedule(self, name: str) -> str:
        """Hash: one schedule."""
        return f"{self.n}schedule:{name}"

    def declared(self, source: str) -> str:
        """Hash: the sets of schedules that live workers of an application declare, and which one counts."""
        return f"{self.n}declared:{source}"

    def tag(self, tag: str) -> str:
        """Sorted set: ids of jobs that carry a tag, scored with the ms enqueued."""
        return f"{self.n}tag:{tag}"

    def correlation(self, correlation_id: str) -> str:
        """Sorted set: ids of jobs that carry a correlation id, scored with the ms enqueued."""
        return f"{self.n}corr:{correlation_id}"

    @property
    def orders(self) -> str:
        """Hash: a worker's name; what it is to do, see ``jobq.orders``."""
        return f"{self.n}orders"

    def claim(self, exec_id: str) -> str:
        """String: an executor's last claim, ``<number>:<lease end>:<id>:<id>…``."""
        return f"{self.n}claim:{exec_id}"

    def queue_state(self, queue: str) -> str:
        """Hash: ``paused until by reason shed mem limit max step parked …``."""
        return f"{self.n}q:{queue}"

    def dedup(self, name: str) -> str:
        """String ``<mode>:<id>``: who holds a dedup key.

        Args:
            name: ``<task>:<digest>``.
        """
        return f"{self.n}dedup:{name}"

    def parked(self, queue: str) -> str:
        """Set: names of the buckets of parked jobs."""
        return f"{self.n}parked:{queue}"

    def bucket(self, queue: str, bucket: str) -> str:
        """Sorted set: parked ids, scored with the ms they were parked."""
        return f"{self.n}parked:{queue}:{bucket}"

    def suspects(self, queue: str) -> str:
        """The bucket of jobs that run apart, because a process died under them."""
        return self.bucket(queue, SUSPECTS)

    def retrying(self, queue: str) -> str:
        """Sorted set: ids in ``scheduled`` that have spent an attempt, scored with the due ms."""
        return f"{self.n}retrying:{queue}"

    def attempts(self, job_id: str) -> str:
        """List: JSON records of earlier attempts, oldest first."""
        return f"{self.n}attempts:{job_id}"

    def log(self, job_id: str) -> str:
        """List: the job's last log lines, oldest first."""
        return f"{self.n}log:{job_id}"

    def counters(self, queue: str, minute: int) -> str:
        """Hash: counters of one minute since 1970."""
        return f"{self.n}n:{queue}:{minute}"

    def live_worker(self, name: str) -> str:
        """Hash: slots, busy, queues, known tasks, version, host, state of a worker."""
        return f"{self.n}worker:{name}"

    def wait(self, job_id: str) -> str:
        """String: somebody waits for this job."""
        return f"{self.n}wait:{job_id}"

    def done(self, job_id: str) -> str:
        """List: the state that a waiter blocks on."""
        return f"{self.n}done:{job_id}"
