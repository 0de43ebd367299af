"""What a worker's registration says of queues that share its slots."""

from __future__ import annotations

import pytest

from jobq.fleet import Worker, worker_of


def worker(parts: str | None = None) -> Worker:
    live = {b"queues": b"email,sms", b"slots": b"5", b"busy": b"3"}
    if parts is not None:
        live[b"parts"] = parts.encode()
    found = worker_of("w-mail", live, None)
    assert found is not None
    return found


def test_each_queue_has_its_own_part() -> None:
    shared = worker("5/1,2/2")
    assert [(shared.slots_of(q), shared.busy_of(q)) for q in ("email", "sms")] == [(5, 1), (2, 2)]
    assert [shared.has_room_for(q) for q in ("email", "sms")] == [True, False]


@pytest.mark.parametrize("parts", [None, "", "5/1", "5/1,2/2,1/0", ","])
def test_without_parts_that_fit_all_have_all(parts: str | None) -> None:
    alike = worker(parts)
    assert (alike.slots_of("sms"), alike.busy_of("sms"), alike.has_room_for("sms")) == (5, 3, True)


def test_parts_that_are_no_numbers_are_none() -> None:
    assert worker("x/y,2").parts == {"email": (0, 0), "sms": (2, 0)}
