"""Payloads and job hashes that no producer of ours writes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import redis

ENVELOPE = '{"v":1,"kid":"","sig":"","body":%s}'


def _body(rand: random.Random) -> str:
    return json.dumps({"task": "chaos.work", "tv": 1, "p": {"token": f"z{rand.random()}", "seconds": 0}})


def _cut(rand: random.Random) -> bytes:
    whole = (ENVELOPE % _body(rand)).encode()
    return whole[: rand.randrange(len(whole))]


def _equal_keys(rand: random.Random) -> bytes:
    return (ENVELOPE % ('{"task":"a",' + _body(rand)[1:])).encode()


def _wrong_types(rand: random.Random) -> bytes:
    body = json.loads(_body(rand))
    wrong: object = rand.choice([None, 7, [], {"a": []}, "text", -1.5, True])
    place = rand.choice(["task", "tv", "p", "token", "seconds"])
    if place in body:
        body[place] = wrong if not (place == "p" and isinstance(wrong, dict)) else [wrong]
        if place == "tv" and wrong in (7, True):  # a version that could exist
            body[place] = "seven"
        if place == "task" and isinstance(wrong, str):
            body[place] = None
    else:
        body["p"][place] = [[wrong]]
    return (ENVELOPE % json.dumps(body)).encode()


def _deep(rand: random.Random) -> bytes:
    depth = rand.choice([201, 1_000, 50_000])
    return (ENVELOPE % ('{"task":"chaos.work","tv":1,"p":' + "[" * depth + "]" * depth + "}")).encode()


def _huge_number(rand: random.Random) -> bytes:
    number = rand.choice(["1e400", "-1e999", "9" * 5_000, "NaN", "Infinity"])
    return (ENVELOPE % ('{"task":"chaos.work","tv":1,"p":{"token":"z","seconds":' + number + "}}")).encode()


def _not_text(rand: random.Random) -> bytes:
    return (ENVELOPE % _body(rand)).encode().replace(b"chaos.work", rand.randbytes(6) + b"\xff\xfe")


def _noise(rand: random.Random) -> bytes:
    return rand.choice([b"", b"x", b"{", b"\x78\x9c", b"\x80\x04\x95"]) + rand.randbytes(rand.randrange(200))


FUZZES: tuple[Callable[[random.Random], bytes], ...] = (
    _cut, _equal_keys, _wrong_types, _deep, _huge_number, _not_text, _noise,
)  # fmt: skip


def fuzzed(rand: random.Random) -> bytes:
    """A payload that is broken in one of several ways."""
    return rand.choice(FUZZES)(rand)


def mutate(raw: redis.Redis, key: str, rand: random.Random) -> None:
    """Damage a job's hash as a foreign hand could."""
    kind = rand.randrange(10)
    if kind == 0:
        raw.hdel(
            key,
            rand.choice(["data", "status", "origin", "created_at", "enqueued_at", "timeout", "description"]),
        )
    elif kind == 1:
        raw.hset(
            key,
            rand.choice(["created_at", "enqueued_at", "started_at"]),
            rand.choice(["yesterday", "", "9" * 40]),
        )
    elif kind == 2:
        raw.hset(key, "status", rand.choice(["foreign", "", "QUEUED", "\x00", "stopped"]))
    elif kind == 3:
        raw.delete(key)
        rand.choice(
            [
                lambda: raw.set(key, "text"),
                lambda: raw.rpush(key, "a", "b"),
                lambda: raw.sadd(key, "member"),
                lambda: raw.zadd(key, {"member": 1}),
            ]
        )()
    elif kind == 4:
        raw.hset(key, "timeout", rand.choice(["soon", "-1", "1e9", "NaN", "", "9" * 16, "1e300", "inf"]))
    elif kind == 5:
        raw.hset(
            key,
            mapping={"attempts": "many", "crashes": "-3", "lost": "1e99", "q": rand.choice(["now", "1e300"])},
        )
    elif kind == 6:
        raw.hset(key, rand.choice(["o", "jk", "dk", "description"]), rand.randbytes(30))
    elif kind == 7:
        gates = [
            "b,5,1000,5,w",
            "r,0,0,0,x",
            "c,0,0,0,z",
            "b,1,1,1,y",
            "r,1," + "9" * 99 + ",0,w",
            "gate",
            "",
        ]
        raw.hset(key, "lm", rand.choice(gates))
    elif kind == 8:
        raw.hset(key, "o", rand.choice(['{"timeout_ms":' + "9" * 25 + "}", '{"max_attempts":1e400}', "[]"]))
    else:
        raw.delete(key)
