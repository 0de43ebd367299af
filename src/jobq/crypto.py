"""What a secret key does: sign payloads, and encrypt the params in them that nobody else may read.

The signature covers the body as bytes and the job's id, or ``*`` in its place for a payload that does not know
its id yet; the encryption covers the id and the task's name likewise.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

from jobq.errors import SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["Key"]

SIGNATURE_BYTES = 16
_NONCE_BYTES = 12

_URLSAFE = bytes.maketrans(b"+/", b"-_")
_UNBOUND_ID = "*"  # never a job id


class Key:
    """One configured secret: separate keys per purpose, so that neither use can weaken the other.

    Attributes:
        kid: Its name in payloads: 8 hex digits that tell nothing of the secret.
        signing: The key of the signatures.
        encryption: The key of the encryption.
    """

    __slots__ = ("_cipher", "encryption", "kid", "signing")

    def __init__(self, secret: str) -> None:
        root = secret.encode("utf-8", "surrogatepass")
        self.signing = hmac.digest(root, b"jobq1 signing", "sha256")
        self.encryption = hmac.digest(root, b"jobq1 encryption", "sha256")
        self.kid = hashlib.sha256(self.signing).hexdigest()[:8]
        self._cipher: AESGCM | None = None

    def sign(self, job_id: str | None, raw: bytes) -> bytes:
        """The signature of a body, base64url without padding; ``job_id`` None: unbound.

        Half of an HMAC-SHA-256, which RFC 2104 allows: 128 bits are as many as the encryption's tag has, and each
        waiting job carries them.
        """
        signed = b"jobq1\0%s\0%s" % (
            (_UNBOUND_ID if job_id is None else job_id).encode("utf-8", "surrogatepass"),
            raw,
        )
        digest = hmac.digest(self.signing, signed, "sha256")[:SIGNATURE_BYTES]
        return b2a_base64(digest, newline=False).translate(_URLSAFE, b"=")

    def verify(self, job_id: str, raw: bytes, signature: bytes) -> bool:
        """Whether a body is signed for this job (True), or signed but unbound (False).

        Raises:
            SignatureError: It is neither.
        """
        # The base64 texts are compared, so that a second spelling of the same bytes does not pass.
        if hmac.compare_digest(self.sign(job_id, raw), signature):
            return True
        if hmac.compare_digest(self.sign(None, raw), signature):
            return False
        raise SignatureError("the payload was altered, forged, or signed for another job")

    def seal(self, clear: bytes, job_id: str | None, task: str) -> str:
        """Encrypt, in the form that a body's ``enc`` has: nonce and ciphertext, base64url without padding."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + (self._cipher or self.load()).encrypt(nonce, clear, _context(job_id, task))
        return urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def unseal(self, enc: Any, job_id: str | None, task: str) -> bytes:
        """What :meth:`seal` encrypted for this job and task.

        Raises:
            SignatureError: It was altered, or belongs to another job.
            ValueError, TypeError: ``enc`` does not have that form.
        """
        from cryptography.exceptions import InvalidTag  # late: 20 ms that only secrets need

        if type(enc) is not str:
            raise TypeError("enc is text")
        sealed = urlsafe_b64decode(enc + "=" * (-len(enc) % 4))
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return (self._cipher or self.load()).decrypt(nonce, rest, _context(job_id, task))
        except InvalidTag:
            raise SignatureError(
                "the payload's encrypted params were altered, or belong to another job"
            ) from None

    def load(self) -> AESGCM:
        """The cipher. It is loaded when a secret needs it: that takes 20 ms and 6 MB."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(self.encryption)
        return self._cipher


def _context(job_id: str | None, task: str) -> bytes:
    return f"jobq1\0{_UNBOUND_ID if job_id is None else job_id}\0{task}".encode("utf-8", "surrogatepass")
