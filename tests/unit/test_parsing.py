from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.parsing import (
    format_duration,
    parse_duration,
    parse_redis_url,
    parse_size,
    parse_switch,
    redact_url,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("24h", 86_400), ("7d", 604_800), ("2w", 1_209_600), ("1h30m", 5_400),
     ("1.5s", 1.5), ("5min", 300), (" 10 S ", 10), ("0", 0), ("2.5", 2.5), (3, 3), (0.25, 0.25)],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "5 parsecs", "-1s", "-1", "nan", "inf", "1e300", "999999999d", "1s x", None, True, [], b"1s"],
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="500ms, 30s, 5m, 24h or 7d"):
        parse_duration(text)


@given(st.integers(0, 10**12))
def test_a_formatted_duration_reads_back(ms):
    value = timedelta(milliseconds=ms)
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize(
    ("text", "size"),
    [("256kB", 262_144), ("1MB", 1_048_576), ("10", 10), (7, 7), ("1.5k", 1536), ("2 MiB", 2_097_152)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", -1, True, None, "1GB5"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="256kB"):
        parse_size(text)


def test_switches():
    assert [parse_switch(text) for text in ("true", "YES", "on", "1", True)] == [True] * 5
    assert [parse_switch(text) for text in ("false", "No", "off", "0", False)] == [False] * 5
    with pytest.raises(ValueError, match="true or false"):
        parse_switch("maybe")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:pw@h:1/0", "redis://u:***@h:1/0"),
        ("redis://:pw@h", "redis://:***@h"),
        ("redis://token@h", "redis://***@h"),
        ("redis://u:p@ss/w:rd@h/0", "redis://u:***@h/0"),
        ("redis://h/0", "redis://h/0"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("redis+sentinel://u:pw@a:1,b:2/m?sentinel_password=pw2", "redis+sentinel://u:***@a:1,b:2/m?sentinel_password=***"),
        ("cannot reach redis://u:pw@h:1, nor smtp://u:pw@m", "cannot reach redis://u:***@h:1, nor smtp://u:***@m"),
        ("u:pw@h:6379", "***@h:6379"),
        ("ada@example.com", "ada@example.com"),
        ("plain", "plain"),
    ],
)  # fmt: skip
def test_urls_lose_their_passwords(url, shown):
    assert redact_url(url) == shown


@given(
    st.text(st.characters(blacklist_categories=("Cs", "Z", "Cc")), min_size=6),
    st.sampled_from(["redis", "unix"]),
)
def test_no_password_survives_however_it_is_written(password, scheme):
    secret = f"pw{password}wp"
    assert secret not in redact_url(f"{scheme}://user:{secret}@host/0")


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("redis://h", "redis://h"),
        ("valkey://u:p@h:1/2", "redis://u:p@h:1/2"),
        ("valkeys://h", "rediss://h"),
        ("rediss://h/1?ssl_cert_reqs=none", "rediss://h/1?ssl_cert_reqs=none"),
        ("redis://h/0?protocol=3&socket_timeout=60&decode_responses=False", "redis://h/0"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        ("unix://u:p@/run/redis.sock", "unix://u:p@/run/redis.sock"),
        ("REDIS://h", "redis://h"),
    ],
)
def test_urls_for_one_server(url, plain):
    found = parse_redis_url(url)
    assert (found.url, found.service) == (plain, "")


def test_sentinel_urls():
    found = parse_redis_url("redis+sentinel://u:p%40@a:1,b/main/3?sentinel_password=s&sentinel_username=w")
    assert found.sentinels == (("a", 1), ("b", 26379))
    assert (found.service, found.tls) == ("main", False)
    assert found.options == {"db": 3, "username": "u", "password": "p@"}
    assert found.sentinel_options == {"username": "w", "password": "s"}
    found = parse_redis_url("rediss+sentinel://:p@[::1]:5?service_name=main&db=1&max_connections=4")
    assert (found.sentinels, found.service, found.tls) == ((("::1", 5),), "main", True)
    assert found.options == {"db": 1, "password": "p", "max_connections": 4}


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://h", "redis, rediss, unix, valkey, valkeys, redis\\+sentinel"),
        ("localhost:6379", "starts with redis"),
        ("", "starts with redis"),
        ("redis://h:port", "a port from 1 to 65535"),
        ("redis://h:99999", "a port from 1 to 65535"),
        ("redis://h/name", "the number of a database"),
        ("redis://h?db=x", "the number of a database"),
        ("redis://h?decode_responses=True", "decode_responses must stay off"),
        ("redis://h?colour=red", "'colour' is not known"),
        ("redis://h?max_connections=x", "whole number"),
        ("unix://run/redis.sock", "unix:///path"),
        ("redis+sentinel://a:1", "master-name"),
        ("redis+sentinel://a:1/m/0/x", "master-name"),
        ("redis+sentinel://a:x/m", "a port from 1 to 65535"),
    ],
)
def test_urls_that_are_refused(url, hint):
    with pytest.raises(ValueError, match=hint):
        parse_redis_url(url)


@pytest.mark.parametrize("sign", ["/", "#", "?"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "redis+sentinel"])
@pytest.mark.parametrize("user", ["", "me"])
def test_a_sign_that_would_cut_a_password_is_refused_and_the_password_not_shown(scheme, sign, user):
    """Of ``redis://:12#secret@host`` redis-py sees the host ``''`` and the port 12."""
    for password in (f"s3c{sign}etPW", f"12{sign}etPW", f"12{sign}et@PW"):
        with pytest.raises(ValueError, match="escaped: write / as %2F") as caught:
            parse_redis_url(f"{scheme}://{user}:{password}@127.0.0.1:6379/main/0")
        assert "etPW" not in str(caught.value)
        assert "s3c" not in str(caught.value)


def test_what_is_escaped_or_harmless_is_taken():
    assert parse_redis_url("redis://:a%2Fb%23c%3Fd%40e@h:1/0").url == "redis://:a%2Fb%23c%3Fd%40e@h:1/0"
    assert parse_redis_url("redis://h:1/0?password=a@b").url == "redis://h:1/0?password=a%40b"
    assert parse_redis_url("redis://:a@b@h:1/0").url
