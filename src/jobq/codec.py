"""Payloads: params to signed bytes and back; results.

A payload is an envelope of JSON::

    {"v":1,"kid":"<8 hex or empty>","sig":"<base64url or empty>","body":{"task":…,"tv":…,"p":{…}}}

The signature covers the body *as bytes*, so nothing has to be written the same way twice. It also covers the
job's id, so a payload cannot be moved to another job; what plain rq enqueues does not know its id and says
``unbound``. Secret params travel in ``enc``, encrypted. What arrives is hostile until its signature has been
checked, and what cannot be used ends in a ``CodecError``, whatever it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from jobq import strict_json
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
)
from jobq.serializer import PERFORM, Binder, Serializer, bind_serializer, plain_loads

__all__ = [
    "DEFAULT_LIMIT", "PERFORM", "Binder", "Codec", "Envelope", "Serializer", "bind_serializer",
]  # fmt: skip

DEFAULT_LIMIT = 262_144
"""Bytes of an encoded payload, and of an encoded result, unless configured otherwise."""

_ENVELOPE = re.compile(rb'\{"v":1,"kid":"(?:([0-9a-f]{8})","sig":"([A-Za-z0-9_-]{22})|","sig":")","body":')
_UNSIGNED = b'{"v":1,"kid":"","sig":"","body":'
_INFLATE = 4  # rq rewrites payloads zlib-compressed; a producer's limit may be somewhat above ours


@dataclass(frozen=True, slots=True)
class Envelope:
    """A verified payload.

    Attributes:
        task: Name of the task.
        version: The task's params version.
        params: JSON values, secrets decrypted; not yet validated. Bytes are base64 text (URL-safe alphabet).
        bound: The signature covers the job's id.
        secrets: Names of the params that were encrypted.
    """

    task: str
    version: int
    params: dict[str, Any]
    bound: bool
    secrets: frozenset[str] = frozenset()


class Codec:
    """Writes and reads payloads and results.

    Args:
        keys: Secrets; the first signs and encrypts, all verify and decrypt. Without any, payloads are not
            signed and secret params travel in clear (settings warn about that, or refuse it).
        limit: Bytes that an encoded payload may have; default 262,144.
        accept_unsigned: With keys, read unsigned payloads too (while signing is rolled out).
        accept_unbound: Read payloads whose signature does not cover the job id: those that plain rq enqueues.

    Raises:
        ConfigError: A key is empty.
    """

    def __init__(
        self,
        keys: Sequence[str] = (),
        *,
        limit: int = DEFAULT_LIMIT,
        accept_unsigned: bool = False,
        accept_unbound: bool = True,
    ) -> None:
        if isinstance(keys, str) or not all(key.strip() for key in keys):
            raise ConfigError("JOBQ_SECRET_KEY must hold one or more non-empty keys, separated by commas")
        derived = [Key(key) for key in keys]
        self._keys = {key.kid: key for key in reversed(derived)}
        self._first = derived[0] if derived else None
        self._head = b'{"v":1,"kid":"%s","sig":"' % derived[0].kid.encode() if derived else _UNSIGNED
        self._limit = limit
        self._accept_unsigned = accept_unsigned
        self._accept_unbound = accept_unbound

    def __repr__(self) -> str:
        return f"Codec(kids={list(self._keys)}, limit={self._limit})"

    def warm_up(self) -> None:
        """Load the cipher now, if there is a key: processes that are forked later then share its 6 MB."""
        if self._first is not None:
            self._first.load()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Names of the keys, as payloads carry them."""
        return tuple(self._keys)

    @property
    def signs(self) -> bool:
        """Whether payloads are signed, and secrets encrypted."""
        return self._first is not None

    def encode(
        self,
        *,
        task: str,
        version: int,
        params: Mapping[str, Any],
        secrets: Collection[str] = (),
        job_id: str | None,
    ) -> bytes:
        """The payload of one job.

        Args:
            task: Name of the task.
            version: The task's params version.
            params: Validated Python values: JSON types, Decimal, dates and times, UUID, Enum, bytes, sets,
                models.
            secrets: Names of the params to encrypt. Without a key they are written in clear.
            job_id: Signed too. None: the id is not known yet (plain rq), the payload is unbound.

        Raises:
            PayloadError: A value has no JSON form that comes back unchanged: NaN, infinity, unknown types,
                nesting beyond 200 levels, keys that become equal, a ``SecretStr`` outside ``secrets``.
            PayloadTooLargeError: The payload is over the limit.
        """
        body: dict[str, Any] = {"task": task}
        if version != 1:
            body["tv"] = version
        body["p"] = params if type(params) is dict else dict(params)
        if job_id is None:
            body["unbound"] = True
        if secrets:
            self._hide(body, secrets, job_id)
        try:
            raw = strict_json.dump(body)
        except ValueError as error:
            raise PayloadError(_blame(body["p"], error), job_id=job_id, task=task) from error
        if self._first is None:
            data = b"%s%s}" % (_UNSIGNED, raw)
        else:
            data = b'%s%s","body":%s}' % (self._head, self._first.sign(job_id, raw), raw)
        if len(data) > self._limit:
            raise PayloadTooLargeError(
                f"the payload of task {task!r} is {len(data):,} bytes, the limit is {self._limit:,}:"
                " pass a reference (an id, a file, a key) instead of the data, or raise JOBQ_PAYLOAD_LIMIT",
                job_id=job_id,
                task=task,
            )
        return data

    def decode(self, data: bytes, *, job_id: str) -> Envelope:
        """Verify and read a payload.

        Args:
            data: As stored, also zlib-compressed as rq rewrites it.
            job_id: The job that carries it.

        Raises:
            PayloadUnreadableError: Not an envelope of ours, or compressed beyond four times the limit.
            SignatureError: Unsigned although keys are configured, forged, altered, or signed for another job.
            NoKeyError: Signed or encrypted with a key that is not configured here.
            NewerPayloadError: A newer version of jobq wrote it.
        """
        try:
            return self._decode(data, job_id)
        except CodecError as error:
            error.job_id = job_id
            raise

    def _decode(self, data: bytes, job_id: str) -> Envelope:
        if data[:1] == b"\x78":
            data = _inflate(data, _INFLATE * self._limit)
        head = _ENVELOPE.match(data)
        if head is None or not data.endswith(b"}"):
            raise _not_ours(data)
        raw = data[head.end() : -1]
        kid, signature = head.groups()
        key, bound = None, None
        if kid is not None:
            key = self._keys.get(kid.decode())
            if key is None:
                unknown = NoKeyError(
                    f"the payload is signed with key {kid.decode()}, which is not in JOBQ_SECRET_KEY"
                )
                unknown.key_id = kid.decode()
                raise unknown
            bound = key.verify(job_id, raw, signature)
        elif self._keys and not self._accept_unsigned:
            raise SignatureError(
                "the payload is not signed, and JOBQ_SECRET_KEY is set; while producers get their keys,"
                " JOBQ_ACCEPT_UNSIGNED=true lets it pass"
            )
        try:
            body = strict_json.load(raw)
        except ValueError as error:
            raise PayloadUnreadableError(f"the payload's body is not usable JSON: {error}") from error
        envelope = self._open(body, key, job_id)
        if bound is not None and bound != envelope.bound:
            raise SignatureError("the payload's signature does not fit its job")
        if not envelope.bound and not self._accept_unbound:
            raise SignatureError("the payload is not bound to its job, and JOBQ_ACCEPT_UNBOUND is false")
        return envelope

    def rebind(self, data: bytes, *, job_id: str, to: str) -> bytes:
        """The payload for another job, written with the first key; what was encrypted stays so.

        Raises:
            CodecError: As :meth:`decode`, for ``job_id``.
        """
        envelope = self.decode(data, job_id=job_id)
        return self.encode(
            task=envelope.task,
            version=envelope.version,
            params=envelope.params,
            secrets=envelope.secrets,
            job_id=to,
        )

    def current(self, data: bytes) -> bool:
        """Whether a payload is written with the first key, or without any if there is none."""
        return data.startswith(self._head)

    def encode_result(self, value: Any, limit: int = DEFAULT_LIMIT) -> bytes:
        """What a task returned, as plain JSON that rq's tools read too.

        Args:
            value: Of the types that params may have. Secrets come out as stars.
            limit: Bytes that the result may have.

        Raises:
            CodecError: It has no JSON form.
            PayloadTooLargeError: It is over the limit.
        """
        try:
            data = strict_json.dump(value, results=True)
        except ValueError as error:
            raise CodecError(
                f"the result, a {type(value).__name__}, cannot be stored as JSON: {error}"
            ) from error
        if len(data) > limit:
            raise PayloadTooLargeError(
                f"the result is {len(data):,} bytes, the limit is {limit:,}: store it elsewhere and return"
                " a reference, or raise JOBQ_RESULT_LIMIT"
            )
        return data

    def decode_result(self, data: bytes) -> Any:
        """The JSON value of a stored result.

        Raises:
            PayloadUnreadableError: Not JSON; perhaps a pickle of another rq worker.
        """
        return plain_loads(data)

    def _hide(self, body: dict[str, Any], secrets: Collection[str], job_id: str | None) -> None:
        params = body["p"]
        hidden = {name: _reveal(params[name]) for name in secrets if name in params}
        if not hidden:
            return
        if self._first is None:
            body["p"] = {**params, **hidden}
            return
        task = body["task"]
        try:
            clear = strict_json.dump(hidden)
        except ValueError:
            # No cause and no reason: either could quote the secret.
            names = ", ".join(sorted(hidden))
            raise PayloadError(f"a secret param ({names}) cannot be written as JSON", task=task) from None
        body["p"] = {name: value for name, value in params.items() if name not in hidden}
        body["enc"] = self._first.seal(clear, job_id, task)

    def _open(self, body: Any, key: Key | None, job_id: str) -> Envelope:
        """Check the shape of a body and decrypt its secrets."""
        if type(body) is not dict:
            raise PayloadUnreadableError("the payload's body is not an object")
        task, version, params = body.get("task"), body.get("tv", 1), body.get("p")
        if type(task) is not str or not task or type(version) is not int or type(params) is not dict:
            raise PayloadUnreadableError("the payload's body lacks a task or params, or has a bad version")
        if "unbound" in body and body["unbound"] is not True:
            raise PayloadUnreadableError("the payload's body has a bad 'unbound'")
        bound = "unbound" not in body
        if "enc" in body:
            if key is None:
                raise PayloadUnreadableError("the payload has encrypted params but names no key")
            hidden = _secrets(body["enc"], key, job_id if bound else None, task)
            params.update(hidden)
            return Envelope(task, version, params, bound, frozenset(hidden))
        return Envelope(task, version, params, bound)


def _secrets(enc: Any, key: Key, job_id: str | None, task: str) -> dict[str, Any]:
    """The secret params of a body, in clear."""
    try:
        clear = from_json(key.unseal(enc, job_id, task), allow_inf_nan=False, cache_strings=False)
    except (ValueError, TypeError) as error:
        raise PayloadUnreadableError(
            f"the payload's encrypted params are malformed ({type(error).__name__})"
        ) from None
    if type(clear) is not dict:
        raise PayloadUnreadableError("the payload's encrypted params are not an object")
    return clear


def _inflate(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise PayloadUnreadableError("the payload is neither an envelope nor zlib data") from error
    if len(plain) > limit:
        raise PayloadUnreadableError(
            f"the payload inflates to more than {limit:,} bytes; raise JOBQ_PAYLOAD_LIMIT"
        )
    if not inflater.eof or inflater.unused_data:
        raise PayloadUnreadableError("the payload's zlib data is cut short or followed by something else")
    return plain


def _not_ours(data: bytes) -> CodecError:
    if data[:1] == b"\x80":
        return PayloadUnreadableError(
            "the payload is a pickle, which jobq never reads: enqueue with jobq.codec.Serializer"
        )
    try:
        value = from_json(data, allow_inf_nan=False) if data[:1] == b"{" else None
    except ValueError:
        value = None
    if isinstance(value, dict) and type(value.get("v")) is int and value["v"] > 1:
        return NewerPayloadError(
            f"the payload has format {value['v']}, this jobq reads format 1: upgrade the worker"
        )
    return PayloadUnreadableError("the payload is not an envelope of jobq")


def _reveal(value: Any) -> Any:
    """A secret param with each ``SecretStr`` in it replaced by its text."""
    if hasattr(value, "get_secret_value"):
        return _reveal(value.get_secret_value())
    if isinstance(value, Mapping):
        return {name: _reveal(member) for name, member in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_reveal(member) for member in value]
    if hasattr(type(value), "__pydantic_fields__") and hasattr(value, "model_dump"):
        return _reveal(value.model_dump())
    return value


def _blame(params: Mapping[str, Any], error: ValueError) -> str:
    """Words for a refusal, naming the param at fault. Never its value."""
    for name, value in params.items():
        try:
            strict_json.dump({name: value})
        except ValueError as reason:
            return f"param {name!r} (a {type(value).__name__}) cannot be written as JSON: {reason}"
    return f"the params cannot be written as JSON: {error}"
