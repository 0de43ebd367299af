"""Before a run: verify, decode, resolve, validate, or say why the job must not run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

from jobq import rq_bridge
from jobq.codec import Codec
from jobq.context import ContextSink, JobContext
from jobq.errors import (
    CodecError,
    ConfigError,
    NewerPayloadError,
    NoKeyError,
    PayloadError,
    SignatureError,
    UnknownTaskError,
)
from jobq.failures import redact, secret_texts
from jobq.options import TaskOptions
from jobq.queues import QueueSpec
from jobq.records import decode_extra
from jobq.retry import RetryPolicy, delays_from_dict
from jobq.rq_bridge import ForeignOptions
from jobq.tasks import Registry, Task
from jobq.worker.attempt import Assignment, Ready, Report
from jobq.worker.reports import Reporter

PARK_NO_KEY = "~key"
PARK_NEWER = "~newer"
PARK_UNSUPPORTED = "~unsupported"
"""Buckets of parked jobs that no task name describes; of the first there is one for each key."""

_OURS = ForeignOptions()
_NO_POLICY: tuple[TaskOptions | None, RetryPolicy] = (None, RetryPolicy())


class Opener:
    """Makes one queue's jobs ready to run.

    Args:
        spec: The queue, whose defaults apply where a task does not say.
        sink: Where the running task's progress goes, and where a request to stop is known.
        default: The policy for tasks and queues that do not say.
        reporter: Reports those that must not run.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        registry: Registry,
        spec: QueueSpec,
        sink: ContextSink,
        default: RetryPolicy,
        reporter: Reporter,
    ) -> None:
        self._codec = codec
        self._registry = registry
        self._spec = spec
        self._sink = sink
        self._default = default
        self._reporter = reporter
        # Merging a task's options with its queue's costs a quarter of a small job's run, and never changes.
        self._policies: dict[str, tuple[TaskOptions | None, RetryPolicy]] = {}

    def open(self, work: Assignment) -> Ready | Report:
        """What the job needs to run; or the report of one that must not."""
        job, tell = work.job, self._reporter
        if self._sink.cancel_requested(job.id):
            return tell.cancelled(work, "cancelled before it started")
        foreign = rq_bridge.foreign_options(job.rq) if job.rq else _OURS
        if foreign.unsupported:
            return tell.parked(work, PARK_UNSUPPORTED, foreign.unsupported)
        first = work.attempt == 1 and not job.lost and not job.crashes  # rq's ttl bounds the first wait alone
        if first and foreign.expires_at_ms is not None and work.claimed_ms > foreign.expires_at_ms:
            return tell.dead(work, "expired", None)
        name = job.description
        secrets: tuple[str, ...] = ()
        try:
            envelope = self._codec.decode(job.data, job_id=job.id)
            name = envelope.task
            task = self._registry.resolve(name)
            secrets = secret_texts(task, envelope.params)
            params = task.load(envelope.params, envelope.version)
        except UnknownTaskError:
            return tell.parked(work, name, "unknown_task")
        except NoKeyError as error:
            return tell.parked(work, no_key_bucket(error.key_id), "no_key")
        except NewerPayloadError as error:
            # Never under the task's name: this worker knows it, and would claim the job again at once.
            return tell.parked(work, PARK_NEWER, f"newer_payload: {error}")
        except SignatureError as error:
            return tell.dead(work, "rejected", error)
        except (CodecError, PayloadError) as error:
            return tell.dead(work, "unreadable", error, secrets=secrets)
        except Exception as error:  # an upcaster or a validator of the application's own
            return tell.dead(work, "unreadable", error, secrets=secrets)
        policy = self._policy(task, job.overrides, foreign)
        context = JobContext(
            job_id=job.id,
            task=task.name,
            queue=self._spec.name,
            attempt=work.attempt,
            max_attempts=policy.max_attempts,
            correlation_id=str(decode_extra(job.extra).get("correlation_id", "")) if job.extra else "",
            sink=self._sink,
            redact=partial(redact, secrets=secrets) if secrets else None,
        )
        work.ready = Ready(task, params, secrets, policy, foreign, context)
        return work.ready

    def _policy(self, task: Task[..., Any], overrides: bytes, foreign: ForeignOptions) -> RetryPolicy:
        spec, policy = self._policies.get(task.name, _NO_POLICY)
        if spec is not task.spec:  # the first of this task, or another task goes by its name now
            policy = task.spec.policy(self._spec, default=self._default)
            self._policies[task.name] = task.spec, policy
        if overrides:
            policy = override_policy(policy, overrides)
        if foreign.max_attempts is not None:
            policy = replace(policy, max_attempts=foreign.max_attempts)
        return policy


def no_key_bucket(key_id: str) -> str:
    """The bucket of jobs that wait for a worker with this key; one with other keys must not ask for it."""
    return f"{PARK_NO_KEY}:{key_id}"


def override_policy(policy: RetryPolicy, overrides: bytes) -> RetryPolicy:
    """A task's policy with what one call asked for, from the job's ``o`` field. An unreadable field asks nothing."""
    try:
        asked = json.loads(overrides)
        if "max_attempts" in asked:
            policy = replace(policy, max_attempts=asked["max_attempts"])
        if "backoff" in asked:
            policy = replace(policy, delays=delays_from_dict(asked["backoff"]))
    except (ValueError, TypeError, AttributeError, RecursionError, ConfigError):
        pass
    return policy
