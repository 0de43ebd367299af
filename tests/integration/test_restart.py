"""What a server that keeps its data has kept, after it was killed."""

from __future__ import annotations

import pytest

import jobq
from jobq.job import JobState
from tests.interop import app
from tests.support.server import ServerFactory


@pytest.mark.covers("Y-03")
def test_jobs_survive_a_restart_of_redis(server_factory: ServerFactory) -> None:
    with (
        server_factory(appendonly=True, appendfsync="always") as server,
        jobq.Client(jobq.Settings(redis_url=server.url)) as client,
    ):
        waiting = app.quiet.options(client=client).enqueue("now")
        later = app.quiet.options(client=client, delay=60).enqueue("later")
        server.kill()
        server.start()
        assert client.get(waiting.id).state is JobState.QUEUED
        assert client.get(later.id).state is JobState.SCHEDULED
        assert app.quiet.options(client=client).enqueue("after").state is JobState.QUEUED
