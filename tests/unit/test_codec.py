"""Payloads: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import fakeredis
import pytest
import rq
import rq.job
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, field_serializer

from jobq.codec import PERFORM, Codec, Envelope, Serializer, bind_serializer
from jobq.crypto import Key
from jobq.errors import (
    CodecError,
    ConfigError,
    NewerPayloadError,
    NoKeyError,
    PayloadError,
    PayloadTooLargeError,
    PayloadUnreadableError,
    SignatureError,
    UnknownTaskError,
)

OLD, NEW = "an-old-secret", "a-new-secret"
ID = "orders_confirm-1-abc"


def put(codec: Codec, params: dict[str, Any], job_id: str | None = ID, secrets: Any = ()) -> bytes:
    return codec.encode(task="orders.confirm", version=2, params=params, job_id=job_id, secrets=secrets)


def raw_envelope(body: bytes) -> bytes:
    return b'{"v":1,"kid":"","sig":"","body":%s}' % body


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_params = st.dictionaries(st.text(), json_values, max_size=5)


# Round trips


@pytest.mark.parametrize("keys", [(), (NEW,)])
@given(params=json_params)
def test_json_values_come_back_as_they_went_in(keys, params):
    codec = Codec(keys)
    assert codec.decode(put(codec, params), job_id=ID) == Envelope("orders.confirm", 2, params, bound=True)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    HIGH = 3


class Item(BaseModel):
    name: str
    price: Decimal


@dataclass
class Point:
    x: int
    y: float


offsets = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
typed_values = st.one_of(
    st.tuples(st.just(Decimal), st.decimals(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just(datetime), st.datetimes(timezones=offsets)),
    st.tuples(st.just(date), st.dates()),
    st.tuples(st.just(time), st.times()),
    st.tuples(st.just(timedelta), st.timedeltas(timedelta(days=-9999), timedelta(days=9999))),
    st.tuples(st.just(UUID), st.uuids()),
    st.tuples(st.just(Colour), st.sampled_from(Colour)),
    st.tuples(st.just(Level), st.sampled_from(Level)),
    st.tuples(st.just(set[int]), st.sets(st.integers())),
    st.tuples(st.just(frozenset[str]), st.frozensets(st.text())),
    st.tuples(st.just(tuple[int, str]), st.tuples(st.integers(), st.text())),
    st.tuples(st.just(bytes), st.binary()),
    st.tuples(st.just(int), st.integers(-(2**600), 2**600)),
    st.tuples(
        st.just(Item),
        st.builds(Item, name=st.text(), price=st.decimals(allow_nan=False, allow_infinity=False)),
    ),
    st.tuples(
        st.just(Point), st.builds(Point, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
    ),
)


@given(typed_values)
def test_python_values_come_back_through_validation(case):
    kind, value = case
    codec = Codec([NEW])
    back = codec.decode(put(codec, {"x": value}), job_id=ID).params["x"]
    config = None if isinstance(kind, type) and kind in (Item, Point) else ConfigDict(val_json_bytes="base64")
    again = TypeAdapter(kind, config=config).validate_json(json.dumps(back))
    assert again == value
    assert type(again) is type(value)


def test_large_integers_and_odd_text():
    codec = Codec()
    params = {"n": 2**2000, "text": '\x00\x7f\u2028é€😀"\\', "": "empty name"}
    assert codec.decode(put(codec, params), job_id=ID).params == params


@given(json_params, st.sets(st.text()))
def test_secrets_come_back_and_are_not_in_the_bytes(params, names):
    codec = Codec([NEW])
    params = {**params, "code": "a-secret-of-123456"}
    data = put(codec, params, secrets={"code", *names})
    assert b"123456" not in data
    assert codec.decode(data, job_id=ID).params == params


def test_without_a_key_secrets_travel_in_clear():
    data = put(Codec(), {"code": SecretStr("123456"), "to": "ada"}, secrets={"code", "absent"})
    assert Codec().decode(data, job_id=ID).params == {"code": "123456", "to": "ada"}


class Card(BaseModel):
    number: SecretStr
    year: int


@pytest.mark.parametrize("keys", [(), (NEW,)])
def test_secret_types_inside_a_secret_param_are_revealed_to_the_worker(keys):
    codec = Codec(keys)
    params = {"card": Card(number=SecretStr("4111"), year=2030), "all": [{"pin": SecretStr("99")}]}
    back = codec.decode(put(codec, params, secrets=["card", "all"]), job_id=ID).params
    assert back == {"card": {"number": "4111", "year": 2030}, "all": [{"pin": "99"}]}


def test_equal_payloads_have_different_ciphertexts():
    codec = Codec([NEW])
    assert put(codec, {"code": "1"}, secrets={"code"}) != put(codec, {"code": "1"}, secrets={"code"})


def test_a_codec_never_shows_its_keys():
    assert NEW not in repr(Codec([NEW]))
    assert NEW not in repr(vars(Codec([NEW])))


# What cannot be written


class Loose(BaseModel):
    x: float


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


circle: list[Any] = []
circle.append(circle)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [1, {"x": -float("inf")}],
        Decimal("NaN"),
        Decimal("-Infinity"),
        [Decimal("sNaN")],
        Loose(x=float("nan")),
        {"deep": [Loose(x=float("inf"))]},
        Point(1, float("nan")),
        object(),
        lambda: None,
        "\ud800",
        SecretStr("not declared"),
        [Card(number=SecretStr("4111"), year=2030)],
        {1: "a", "1": "b"},
        nested(197 + 3),
        nested(100_000),
        circle,
        10**5000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_would_not_come_back_is_refused_and_named(value):
    with pytest.raises(PayloadError, match=r"param 'bad'|cannot be written") as caught:
        put(Codec(), {"fine": None, "bad": value})
    assert caught.value.task == "orders.confirm"
    assert "4111" not in str(caught.value)


class Rude(BaseModel):
    x: int = 1

    @field_serializer("x")
    def _raise(self, value: int) -> int:
        raise KeyError(value)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


def test_a_model_whose_own_serializer_fails_is_refused():
    with pytest.raises(PayloadError, match="param 'bad'"):
        put(Codec(), {"bad": Rude()})


def test_nan_in_an_undeclared_field_of_a_model_is_refused():
    with pytest.raises(PayloadError, match="NaN"):
        put(Codec(), {"bad": Open.model_validate({"more": float("nan")})})


def test_whatever_nesting_can_be_written_can_be_read():
    codec = Codec()
    written = 0
    for depth in range(150, 260):
        try:
            data = put(codec, {"x": nested(depth)})
        except PayloadError:
            continue
        written = depth
        assert codec.decode(data, job_id=ID).params == {"x": nested(depth)}
    assert written > 180


def test_a_secret_that_cannot_be_written_is_not_quoted():
    with pytest.raises(PayloadError) as caught:
        put(Codec([NEW]), {"code": ["hunter2\ud800"]}, secrets=["code"])
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_text_that_looks_like_trouble_is_fine():
    codec = Codec()
    params = {"a": "**********", "b": "NaN", "c": "Infinity", "d": "null", "e": None, "f": float("1e300")}
    assert codec.decode(put(codec, params), job_id=ID).params == params


def test_the_limit_is_on_the_encoded_payload():
    codec = Codec([NEW], limit=1000)
    size = len(put(codec, {"x": ""}))
    assert len(put(codec, {"x": "a" * (1000 - size)})) == 1000
    with pytest.raises(PayloadTooLargeError, match="JOBQ_PAYLOAD_LIMIT") as caught:
        put(codec, {"x": "a" * (1001 - size)})
    assert caught.value.job_id == ID


# Signatures and keys


@pytest.mark.parametrize("keys", [[""], [NEW, " "], "one-text"])
def test_empty_keys_are_a_config_error(keys):
    with pytest.raises(ConfigError):
        Codec(keys)


@settings(max_examples=40)
@given(st.data())
def test_any_altered_byte_is_refused(data):
    codec = Codec([NEW])
    payload = put(codec, {"amount": "12.50", "code": "123456"}, secrets={"code"})
    at = data.draw(st.integers(0, len(payload) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != payload[at]))
    with pytest.raises(CodecError):
        codec.decode(payload[:at] + bytes([byte]) + payload[at + 1 :], job_id=ID)


def test_every_position_is_covered():
    codec = Codec([NEW])
    payload = put(codec, {"amount": "12.50", "code": "123456"}, secrets={"code"})
    for at in range(len(payload)):
        for altered in (bytes([payload[at] ^ 1]), b"", payload[at : at + 1] * 2):
            with pytest.raises(CodecError):
                codec.decode(payload[:at] + altered + payload[at + 1 :], job_id=ID)


def test_a_payload_cannot_be_moved_to_another_job():
    codec = Codec([NEW])
    with pytest.raises(SignatureError) as caught:
        codec.decode(put(codec, {"x": 1}), job_id="another")
    assert caught.value.job_id == "another"


def test_ciphertext_cannot_be_moved_to_another_job_by_one_who_lacks_the_encryption_context():
    codec = Codec([NEW])
    body = json.loads(put(codec, {"code": "1"}, secrets={"code"}))["body"]
    key = Key(NEW)
    raw = json.dumps(body, separators=(",", ":")).encode()
    forged = b'{"v":1,"kid":"%s","sig":"%s","body":%s}' % (
        key.kid.encode(),
        key.sign("another", raw),
        raw,
    )
    with pytest.raises(SignatureError, match="encrypted"):
        codec.decode(forged, job_id="another")


def test_rotation_all_keys_read_the_first_writes():
    before, during, after = Codec([OLD]), Codec([NEW, OLD]), Codec([NEW])
    params = {"code": "123456", "x": 1}
    old, new = put(before, params, secrets={"code"}), put(during, params, secrets={"code"})
    assert during.decode(old, job_id=ID).params == during.decode(new, job_id=ID).params == params
    assert after.decode(new, job_id=ID).params == params
    with pytest.raises(NoKeyError):
        before.decode(new, job_id=ID)
    with pytest.raises(NoKeyError):
        after.decode(old, job_id=ID)


def test_signed_without_a_key_here_is_no_key():
    for secrets in ((), ("code",)):
        with pytest.raises(NoKeyError):
            Codec().decode(put(Codec([NEW]), {"code": "1"}, secrets=secrets), job_id=ID)


def test_unsigned_with_a_key_here_is_refused_unless_accepted():
    unsigned = put(Codec(), {"x": 1})
    with pytest.raises(SignatureError):
        Codec([NEW]).decode(unsigned, job_id=ID)
    assert Codec([NEW], accept_unsigned=True).decode(unsigned, job_id=ID).params == {"x": 1}


def test_accept_unsigned_does_not_accept_a_bad_signature():
    signed = put(Codec([NEW]), {"x": 1})
    with pytest.raises(SignatureError):
        Codec([NEW], accept_unsigned=True).decode(signed.replace(b'"x":1', b'"x":2'), job_id=ID)


@pytest.mark.parametrize("keys", [(), (NEW,)])
def test_unbound_payloads_fit_any_job_unless_refused(keys):
    data = put(Codec(keys), {"code": "1"}, job_id=None, secrets={"code"})
    envelope = Codec(keys).decode(data, job_id="whatever")
    assert (envelope.params, envelope.bound) == ({"code": "1"}, False)
    with pytest.raises(SignatureError, match="JOBQ_ACCEPT_UNBOUND"):
        Codec(keys, accept_unbound=False).decode(data, job_id="whatever")


def test_bound_cannot_be_passed_off_as_unbound_nor_the_reverse():
    key = Key(NEW)
    for signed_as, extra in ((None, b""), (ID, b',"unbound":true')):
        raw = b'{"task":"t","tv":1,"p":{}%s}' % extra
        data = b'{"v":1,"kid":"%s","sig":"%s","body":%s}' % (
            key.kid.encode(),
            key.sign(signed_as, raw),
            raw,
        )
        with pytest.raises(SignatureError):
            Codec([NEW]).decode(data, job_id=ID)


def test_keys_are_derived_per_purpose_and_stay_as_they_are():
    key = Key(NEW)
    assert len({key.signing, key.encryption, NEW.encode()}) == 3
    assert not Codec().signs
    assert Codec([NEW]).signs
    # Written by the first version: what it left in Redis must stay readable.
    head = b'{"v":1,"kid":"f482aaec","sig":"mCcLW2Ij-LoDSZ3tlHAQOg","body":'
    data = head + b'{"task":"orders.confirm","tv":2,"p":{"x":1}}}'
    assert put(Codec([NEW]), {"x": 1}) == data


# What cannot be read

GOOD = b'{"task":"t","tv":1,"p":{}}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b'{"task":5,"tv":1,"p":{}}',
        b'{"task":null,"tv":1,"p":{}}',
        b'{"task":"","tv":1,"p":{}}',
        b'{"tv":1,"p":{}}',
        b'{"task":"t","tv":null,"p":{}}',
        b'{"task":"t","tv":1}',
        b'{"task":"t","tv":"1","p":{}}',
        b'{"task":"t","tv":true,"p":{}}',
        b'{"task":"t","tv":1.0,"p":{}}',
        b'{"task":"t","tv":1,"p":[]}',
        b'{"task":"t","tv":1,"p":{},"unbound":false}',
        b'{"task":"t","tv":1,"p":{},"unbound":1}',
        b'{"task":"t","tv":1,"p":{},"enc":{"n":"","c":""}}',
        b'{"task":"t","tv":1,"p":{},"enc":""}',
        b'{"task":"t","tv":1,"p":{"a":1,"a":2}}',
        b'{"task":"t","tv":1,"p":{},"task":"u"}',
        b'{"task":"t","tv":1,"p":{"a":{"b":1,"\\u0062":2}}}',
        b'{"task":"t","tv":1,"p":{"a":NaN}}',
        b'{"task":"t","tv":1,"p":{"a":-Infinity}}',
        b'{"task":"t","tv":1,"p":{"a":1e400}}',
        b'{"task":"t","tv":1,"p":{"a":"\xff"}}',
        b'{"task":"t","tv":1,"p":{"a":"\\ud800"}}',
        b'{"task":"t","tv":1,"p":{"a":"\x00"}}',
        b'{"task":"t","tv":1,"p":{"a":' + b"9" * 5000 + b"}}",
        b'{"task":"t","tv":1,"p":{"a":' + b"[" * 500 + b"]" * 500 + b"}}",
        b'{"task":"t","tv":1,"p":{"a":' + b"[" * 100_000,
        GOOD + b',"more":1',
        GOOD[:-1],
        GOOD + b" x",
    ],
)
def test_a_bad_body_is_unreadable(body):
    with pytest.raises(PayloadUnreadableError) as caught:
        Codec().decode(raw_envelope(body), job_id=ID)
    assert caught.value.job_id == ID


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"}",
        b"{}",
        b"null",
        b"[1,2]",
        b"\x00",
        b"\xff\xfe",
        b"\x78",
        b"x" * 100,
        pickle.dumps(("os.system", None, ("true",), {})),
        zlib.compress(b"{}"),
        zlib.compress(raw_envelope(GOOD))[:-3],
        zlib.compress(raw_envelope(GOOD)) + b"more",
        b'{"v":0,"kid":"","sig":"","body":%s}' % GOOD,
        b'{"v":"1","kid":"","sig":"","body":%s}' % GOOD,
        b'{"v":true,"kid":"","sig":"","body":%s}' % GOOD,
        b'{"v":1,"kid":"","sig":"short","body":%s}' % GOOD,
        b'{"v":1,"kid":"0123456","sig":"","body":%s}' % GOOD,
        b'{"v":1, "kid":"", "sig":"", "body":%s}' % GOOD,
        raw_envelope(GOOD) + b" ",
        raw_envelope(GOOD)[:-1],
        b"{" * 10_000,
        b'{"v":1e400}',
    ],
)
def test_what_is_no_envelope_is_unreadable(data):
    for keys in ((), (NEW,)):
        with pytest.raises(PayloadUnreadableError):
            Codec(keys, accept_unsigned=True).decode(data, job_id=ID)


@settings(max_examples=300)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_bytes_from_anywhere_end_in_a_codec_error(data):
    with pytest.raises(CodecError):
        Codec([NEW]).decode(data, job_id=ID)
    with pytest.raises(CodecError):
        Codec().decode(raw_envelope(data), job_id=ID)


def test_a_later_format_is_newer():
    with pytest.raises(NewerPayloadError, match="format 2"):
        Codec().decode(b'{"v":2,"alg":"ed25519","body":{}}', job_id=ID)


@pytest.mark.parametrize(
    "part", [5, "", {}, {"n": 1, "c": 2}, {"n": "AAAA", "c": "AAAA"}, {"n": "é", "c": ""}, {"n": "A"}]
)
def test_malformed_ciphertext_is_a_codec_error(part):
    key = Key(NEW)
    raw = json.dumps({"task": "t", "tv": 1, "p": {}, "enc": part}, separators=(",", ":")).encode()
    data = b'{"v":1,"kid":"%s","sig":"%s","body":%s}' % (
        key.kid.encode(),
        key.sign(ID, raw),
        raw,
    )
    with pytest.raises(CodecError):
        Codec([NEW]).decode(data, job_id=ID)


def test_other_writers_may_space_their_body():
    body = b'{ "task": "t", "tv": 1, "p": {"a": 1.50, "b": [1e3]} }'
    assert Codec().decode(raw_envelope(body), job_id=ID).params == {"a": 1.5, "b": [1000.0]}


def test_what_rq_compressed_is_read():
    codec = Codec([NEW])
    assert codec.decode(zlib.compress(put(codec, {"x": 1})), job_id=ID).params == {"x": 1}


def test_a_zlib_bomb_is_refused_without_inflating_it():
    with pytest.raises(PayloadUnreadableError, match="inflates to more than"):
        Codec(limit=1000).decode(zlib.compress(b"a" * 50_000_000), job_id=ID)


# Results


@given(json_values)
def test_results_are_plain_json(value):
    codec = Codec([NEW])
    data = codec.encode_result(value)
    assert codec.decode_result(data) == json.loads(data) == value


def test_results_of_python_types_and_of_models():
    data = Codec().encode_result({"at": date(2026, 1, 1), "item": Item(name="a", price=Decimal("1.10"))})
    assert json.loads(data) == {"at": "2026-01-01", "item": {"name": "a", "price": "1.10"}}


@pytest.mark.parametrize("value", [object(), float("nan"), Loose(x=float("inf")), nested(300), "\ud800"])
def test_a_result_without_a_json_form_is_a_codec_error(value):
    with pytest.raises(CodecError):
        Codec().encode_result(value)


def test_a_secret_in_a_result_stays_hidden():
    assert b"4111" not in Codec().encode_result(Card(number=SecretStr("4111"), year=2030))


def test_a_result_has_a_limit():
    assert Codec().encode_result("a" * 8, limit=10) == b'"aaaaaaaa"'
    with pytest.raises(PayloadTooLargeError, match="JOBQ_RESULT_LIMIT"):
        Codec().encode_result("a" * 9, limit=10)


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"{", b"NaN", b"\xff"])
def test_a_stored_result_that_is_no_json_is_a_codec_error(data):
    with pytest.raises(PayloadUnreadableError):
        Codec().decode_result(data)


# rq's serializer


def confirm(order_id: str, amount: str = "1", code: str = "") -> None:
    """Stands for a task."""


class TaskLike:
    name = "orders.confirm"

    def __call__(self) -> None: ...

    def method(self) -> None: ...


def bind(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, int, dict[str, Any], set[str]]:
    if name not in ("orders.confirm", f"{confirm.__module__}.confirm"):
        raise UnknownTaskError(f"no task {name}")
    return "orders.confirm", 2, dict(zip(("order_id", "amount"), args, strict=False)) | kwargs, {"code"}


@pytest.fixture
def bound():
    codec = Codec([NEW])
    before = Serializer.provider
    bind_serializer(lambda: (codec, bind))
    yield codec
    bind_serializer(before)


@pytest.fixture
def queue():
    server = fakeredis.FakeServer()
    with fakeredis.FakeRedis(server=server) as connection:
        yield rq.Queue("high", connection=connection, serializer=Serializer)


@pytest.mark.parametrize("call", [confirm, "orders.confirm", TaskLike()])
def test_rq_enqueues_our_envelopes(bound, queue, call):
    job = queue.enqueue(call, "ORD-1", code="123456", description="orders.confirm")
    stored = zlib.decompress(queue.connection.hget(job.key, "data"))
    envelope = bound.decode(stored, job_id=job.id)
    params = {"order_id": "ORD-1", "code": "123456"}
    assert envelope == Envelope("orders.confirm", 2, params, bound=False, secrets=frozenset({"code"}))
    everything = b"".join(queue.connection.hgetall(job.key).values()) + stored
    assert b"123456" not in everything


def test_rq_reads_a_job_without_seeing_its_params(bound, queue):
    job = rq.job.Job.fetch(
        queue.enqueue("orders.confirm", "ORD-1").id, connection=queue.connection, serializer=Serializer
    )
    assert (job.func_name, job.instance, job.kwargs) == (PERFORM, None, {})
    assert bound.decode(job.args[0].encode(), job_id=job.id).params == {"order_id": "ORD-1"}


def test_rq_reads_and_saves_again_what_jobq_wrote(bound, queue):
    job = rq.job.Job.create("orders.confirm", connection=queue.connection, serializer=Serializer, id="j1")
    data = bound.encode(task="orders.confirm", version=2, params={"x": 1}, job_id="j1")
    job.data = data
    job.save()
    again = rq.job.Job.fetch("j1", connection=queue.connection, serializer=Serializer)
    again.kwargs = again.kwargs  # throws the bytes away, so that saving writes the call anew
    again.meta = {"progress": 0.5}
    again.save()
    stored = queue.connection.hget(again.key, "data")
    assert zlib.decompress(stored) == data
    assert bound.decode(stored, job_id="j1").params == {"x": 1}
    assert rq.job.Job.fetch("j1", connection=queue.connection, serializer=Serializer).meta == {
        "progress": 0.5
    }


def test_an_unknown_function_or_wrong_call_is_refused_at_enqueue(bound, queue):
    with pytest.raises(UnknownTaskError):
        queue.enqueue("os.system", "true", description="x")
    with pytest.raises(PayloadError, match="method"):
        queue.enqueue(TaskLike().method)
    with pytest.raises(PayloadError, match="by hand"):
        queue.enqueue(PERFORM, "not an envelope")
    assert queue.count == 0


def test_without_a_client_the_remedy_is_named(monkeypatch):
    importlib.import_module("jobq.client")  # so that the look-up by name finds it done, and nothing bound
    monkeypatch.setattr(Serializer, "provider", None)
    with pytest.raises(ConfigError, match="bind_serializer"):
        Serializer.dumps(("orders.confirm", None, (), {}))


def _like_a_call(value):
    return (
        isinstance(value, list)
        and len(value) == 4
        and isinstance(value[0], str)
        and isinstance(value[3], dict)
    )


@given(json_values.filter(lambda value: not _like_a_call(value)))  # those are refused, see below
def test_other_values_are_plain_json(value):
    assert Serializer.loads(Serializer.dumps(value)) == value


@pytest.mark.parametrize("args", [["true"], "t", {"true": 1}, []])
@pytest.mark.parametrize("instance", [None, "text"])
def test_a_plain_json_call_is_never_handed_to_rq(args, instance):
    with pytest.raises(PayloadUnreadableError, match="never run"):
        Serializer.loads(json.dumps(["os.system", instance, args, {}]).encode())


def test_pickle_is_refused():
    with pytest.raises(PayloadUnreadableError, match="pickle"):
        Serializer.loads(pickle.dumps(("os.system", None, ("true",), {})))


@pytest.mark.parametrize("data", [b"", b"x", b"{", b"NaN", b'{"v":1,"kid":"\xff"}', b'{"a":1,"a":2}'])
def test_rq_gets_nothing_else(data):
    with pytest.raises(PayloadUnreadableError):
        Serializer.loads(data)


def test_a_value_without_a_json_form_is_refused():
    with pytest.raises(PayloadError):
        Serializer.dumps(object())


def test_importing_the_codec_is_cheap():
    heavy = ("cryptography", "pydantic", "redis", "rq")
    program = f"import sys, jobq.codec; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
