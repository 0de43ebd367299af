"""Loader, Store, AsyncStore and Link: how steps are sent, and what foreign errors become."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from jobq import calls, lua
from jobq.errors import QueueFullError, StoreError, StorePermissionError, StoreUnavailableError
from jobq.keys import Keys
from jobq.refusals import remedy
from jobq.steps import Batch, Call, Plan
from jobq.store import AsyncStore, Link, Store, translate
from tests.lua.conftest import Bench
from tests.support.server import ServerFactory

KEYS = Keys()


def test_every_script_has_a_sound_header() -> None:
    for name in lua.names():
        script = lua.script(name)
        text = script.text.decode()
        assert text.startswith(f"-- {name}.lua: "), name
        assert {"-- ARGV[1]", "-- Returns"} == {
            part for part in ("-- ARGV[1]", "-- Returns") if part in text
        }, name
        for word in ("cmsgpack", "struct.", "bit.", "sha1hex"):
            assert word not in text, (name, word)


def test_a_wrong_number_of_keys_is_found() -> None:
    with pytest.raises(ValueError, match=r"claim\.lua takes 10 keys, got 1"):
        Call("claim", ("one",), (), bool)
    with pytest.raises(ValueError, match="numbered from 1"):
        lua.parse("x", b"-- KEYS[2]  second\n")
    variadic = lua.parse("x", b"-- KEYS[1]  a\n-- KEYS[2+]  more\n")
    variadic.check(1)
    variadic.check(7)


def test_a_flushed_script_cache(real: Bench) -> None:
    real.enqueue("a")
    real.redis.script_flush()
    assert real.enqueue("a") == [("mine", "a")]


def test_a_plan_runs_alike_on_both_stores(real: Bench) -> None:
    def plan() -> Plan[tuple[str, int, Any]]:
        word = (yield calls.enqueue(KEYS, "q", [real.new("a")]))[0].status
        length, broken = yield Batch((("LLEN", KEYS.queue("q")), ("LLEN", KEYS.job("a"))))
        return word, length, type(broken)

    assert real.store.run(plan()) == ("queued", 1, ResponseError)

    async def run() -> Any:
        options = real.redis.connection_pool.connection_kwargs
        client = redis.asyncio.Redis(port=options["port"])
        try:
            return await AsyncStore(client).run(plan())
        finally:
            await client.aclose()

    assert asyncio.run(run()) == ("mine", 1, ResponseError)


def test_a_plan_may_handle_the_error(real: Bench) -> None:
    def plan() -> Plan[str]:
        try:
            yield Call("progress", ("k", "k"), ("", "rq:", "jobq:", "m", "t"), bool)
        except StoreError as error:
            return str(error)
        return ""

    real.redis.set("k", "x")
    assert "WRONGTYPE" in real.store.run(plan())


def test_link_sends_all_at_once_and_in_order(real: Bench) -> None:
    link = Link(real.redis)
    real.redis.script_flush()
    steps: list[Call[Any]] = [calls.enqueue(KEYS, "q", [real.new("a")], now_ms=real.now), real.claim_call()]
    answers = link.exchange(steps)
    assert (answers[0][0].status, answers[1].jobs[0].id) == ("queued", "a")
    assert link.exchange(steps)[1].jobs[0].id == "a"
    assert link.exchange([]) == []
    link.close()
    assert link.exchange([steps[0]])[0][0].status == "mine"


def test_link_goes_on_after_an_error(real: Bench) -> None:
    link = Link(real.redis)
    real.redis.set("k", "x")
    bad: Call[Any] = Call("progress", ("k", "k"), ("", "rq:", "jobq:", "m", "t"), bool)
    with pytest.raises(StoreError, match="WRONGTYPE"):
        link.exchange([bad, calls.enqueue(KEYS, "q", [real.new("a")])])
    assert real.status("a") == "queued"
    assert link.exchange([calls.enqueue(KEYS, "q", [real.new("a")])])[0][0].status == "mine"


def test_link_answers_with_the_error_where_that_is_asked_for(real: Bench) -> None:
    link = Link(real.redis)
    real.redis.set("k", "x")
    bad: Call[Any] = Call("progress", ("k", "k"), ("", "rq:", "jobq:", "m", "t"), bool)
    steps: list[Call[Any]] = [bad, calls.enqueue(KEYS, "q", [real.new("a")])]
    refused, made = link.exchange(steps, "progress")
    assert (type(refused), made[0].status) == (StoreError, "queued")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        link.exchange(steps, "enqueue")


def test_link_survives_a_restart(server_factory: ServerFactory) -> None:
    with server_factory() as server, redis.Redis.from_url(server.url) as client:
        link = Link(client)
        beat = calls.heartbeat(KEYS, ["a:b"], 1000)
        assert link.exchange([beat])[0].lost == ["a:b"]
        client.client_kill_filter(skipme=True, _type="normal")
        with pytest.raises(StoreUnavailableError) as caught:
            link.exchange([beat])
        assert caught.value.ambiguous is True
        assert link.exchange([beat])[0].lost == ["a:b"]
    with pytest.raises(StoreUnavailableError) as caught:
        link.exchange([beat])
    with pytest.raises(StoreUnavailableError) as caught:
        link.exchange([beat])
    assert caught.value.ambiguous is False


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(StoreUnavailableError) as caught:
        Store(redis.Redis(port=port, retry=None)).run(calls.release(KEYS))
    assert caught.value.ambiguous is False


def test_a_user_without_permission(real: Bench) -> None:
    real.redis.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+ping", "+get")
    port = real.redis.connection_pool.connection_kwargs["port"]
    for password in ("pw", "wrong"):
        client = redis.Redis(port=port, username="reader", password=password)
        with pytest.raises(StorePermissionError):
            Store(client).run(calls.release(KEYS))
    real.redis.execute_command("ACL", "DELUSER", "reader")


def test_a_user_who_may_run_scripts_but_not_all_their_commands(real: Bench) -> None:
    real.redis.execute_command("ACL", "SETUSER", "some", "on", ">pw", "~*", "+@all", "-hset")
    port = real.redis.connection_pool.connection_kwargs["port"]
    client = redis.Redis(port=port, username="some", password="pw")
    with pytest.raises(StorePermissionError):
        Store(client).run(calls.enqueue(KEYS, "q", [real.new("a")]))
    assert not real.redis.exists("rq:job:a", "rq:queue:q")
    real.redis.execute_command("ACL", "DELUSER", "some")


def test_a_replica_takes_no_writes(real: Bench) -> None:
    real.redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(StoreUnavailableError) as caught:
            real.enqueue("a")
        assert caught.value.ambiguous is False
    finally:
        real.redis.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("error", "script", "expected"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "enqueue", QueueFullError),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "promote", StoreError),
        # Redis 6.2 wraps the error of a script's command.
        (
            ResponseError(
                "Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not"
            ),
            "enqueue",
            QueueFullError,
        ),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "", StoreUnavailableError),
        (ResponseError("MASTERDOWN Link with MASTER is down"), "", StoreUnavailableError),
        (redis.BusyLoadingError("Redis is loading the dataset in memory"), "", StoreUnavailableError),
        (RedisConnectionError("Connection closed by server."), "", StoreUnavailableError),
        (redis.AuthenticationError("invalid username-password pair"), "", StorePermissionError),
        (OSError("broken pipe"), "", StoreUnavailableError),
    ],
)
def test_translation(error: Exception, script: str, expected: type[Exception]) -> None:
    assert type(translate(error, script=script)) is expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (redis.AuthenticationError("Authentication required."), "asks for a password"),
        (ResponseError("NOAUTH HELLO must be called with the client already authenticated"), "asks for a password"),
        (redis.AuthenticationError("invalid username-password pair or user is disabled."), "wrong user or password"),
        (ResponseError("NOPERM no permissions to run the 'hset' command"), "'hset' command; extend its ACL"),
        (ResponseError("DENIED Redis is running in protected mode"), "lets in its own host"),
        (ResponseError("DB index is out of range"), "number at the end of JOBQ_REDIS_URL"),
        (redis.ReadOnlyError("You can't write against a read only replica."), "it is a replica"),
        (ResponseError("LOADING Redis is loading the dataset in memory"), "is loading its data"),
    ],
)  # fmt: skip
def test_a_refusal_names_its_remedy(error: Exception, words: str) -> None:
    assert words in str(translate(error))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Error 111 connecting to 127.0.0.1:1. Connection refused.", "start Redis"),
        ("Error 1 connecting to h:1. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "ssl_ca_certs"),
        ("Error 1 connecting to h:1. [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "redis://"),
        ("Error while reading from h:1 : (104, 'Connection reset by peer')", "rediss://"),
        ("Timeout connecting to server", "firewall"),
        ("max number of clients reached", "maxclients"),
    ],
)  # fmt: skip
def test_what_is_unreachable_has_the_remedy_that_fits(said: str, words: str) -> None:
    assert words in remedy(str(translate(RedisConnectionError(said))))


def test_nobody_is_told_to_start_a_server_that_answers() -> None:
    for error in (
        redis.ReadOnlyError("You can't write against a read only replica."),
        redis.BusyLoadingError("x"),
    ):
        assert "start" not in remedy(str(translate(error)))


def test_a_batch_that_may_not_read_raises(real: Bench) -> None:
    """Empty answers would look as if there were no jobs; what managed servers close tells nothing about that."""
    real.redis.execute_command(
        "ACL", "SETUSER", "some", "on", ">pw", "~*", "+@all", "-llen", "-info", "-config"
    )
    kwargs = real.redis.connection_pool.connection_kwargs
    client = redis.Redis(port=kwargs["port"], username="some", password="pw")
    replies = Store(client).run(Batch((("INFO",), ("CONFIG", "GET", "save"), ("EXISTS", "x"))))
    assert [isinstance(reply, Exception) for reply in replies] == [True, True, False]
    with pytest.raises(StorePermissionError, match="llen"):
        Store(client).run(Batch((("EXISTS", "x"), ("LLEN", "x"))))
    real.redis.execute_command("ACL", "DELUSER", "some")


def test_what_a_user_lacks_is_found_and_nothing_is_left(real: Bench) -> None:
    assert Store(real.redis).run(calls.allowed(KEYS)) == []
    real.redis.execute_command(
        "ACL", "SETUSER", "some", "on", ">pw", "~*", "&*", "+@all", "-zadd", "-del", "-publish"
    )
    kwargs = real.redis.connection_pool.connection_kwargs
    client = redis.Redis(port=kwargs["port"], username="some", password="pw")
    assert set(Store(client).run(calls.allowed(KEYS))) == {"ZADD", "DEL", "PUBLISH"}
    real.redis.execute_command("ACL", "DELUSER", "some")
    for key in real.redis.scan_iter():
        assert real.redis.pttl(key) >= 0, f"{key} stays"


def test_every_command_of_the_scripts_is_tried() -> None:
    used = {
        command
        for name in lua.names()
        for command in re.findall(r"call\('([A-Z]+)'", lua.script(name).text.decode())
    }
    tried = lua.script("allowed").text.decode()
    assert {command for command in used if f"'{command}'" not in tried} == {"INFO"}


def test_ambiguous_only_when_it_may_have_run() -> None:
    def told(text: str) -> bool:
        error = translate(RedisConnectionError(text))
        assert isinstance(error, StoreUnavailableError)
        return error.ambiguous

    assert told("Connection closed by server.") is True
    assert told("Timeout reading from 127.0.0.1:1") is True
    assert told("Error 111 connecting to 127.0.0.1:1. Connection refused.") is False
