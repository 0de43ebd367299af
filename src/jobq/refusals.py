"""What an error of Redis means, in words that name the remedy; none of them repeats a password."""

from __future__ import annotations

import re

__all__ = ["WRONG_SETTING", "denied", "no_writes", "remedy", "wrong_setting"]

WRONG_SETTING = re.compile(r"DB index is out of range|invalid DB index", re.IGNORECASE)
"""Errors that no waiting mends: a setting of ours is wrong, whoever the user is."""

_NO_LOGIN = re.compile(r"NOAUTH|HELLO must be called|Authentication required", re.IGNORECASE)
_WRONG_LOGIN = re.compile(
    r"WRONGPASS|invalid username-password|invalid password|no password is set", re.IGNORECASE
)
_REPLICA = re.compile(r"READONLY|read only replica", re.IGNORECASE)
_LOADING = re.compile(r"LOADING", re.IGNORECASE)
_REMEDIES = (
    (
        re.compile(r"certificate verify failed", re.IGNORECASE),
        "name its authority with ?ssl_ca_certs=FILE in the URL, and the host as its certificate does",
    ),
    (
        re.compile(r"\[SSL|EOF occurred in violation", re.IGNORECASE),
        "if it does not speak TLS, write redis://",
    ),
    (
        re.compile(r"Connection reset by peer|Connection closed by server", re.IGNORECASE),
        "if it expects TLS, write rediss:// in the URL; else see its log",
    ),
    (
        re.compile(r"Timeout connecting", re.IGNORECASE),
        "look at host, port and firewall, and if it does not speak TLS, write redis://",
    ),
    (re.compile(r"max number of clients", re.IGNORECASE), "raise its maxclients, or stop who holds them"),
    (re.compile(r"is loading its data"), "wait until it has loaded"),
    (re.compile(r"is a replica"), "name its primary, or use redis+sentinel://, which follows it"),
    (re.compile(r"MISCONF"), ""),
    (re.compile(r"takes no writes for now"), "see its log, and that of its replicas"),
)
_START = "start Redis, or name another one with JOBQ_REDIS_URL or -u (see jobq doctor)"


def denied(text: str) -> str:
    """What a login or a permission that Redis refused means."""
    if "protected mode" in text:
        return (
            "Redis is in protected mode and lets in its own host only: give it a password and bind it there"
        )
    if _NO_LOGIN.search(text):
        return "Redis refuses the login: it asks for a password; put it into JOBQ_REDIS_URL (redis://:PASSWORD@HOST)"
    if _WRONG_LOGIN.search(text):
        return "Redis refuses the login: wrong user or password, or the user is off; correct JOBQ_REDIS_URL"
    return f"the Redis user may not do this: {text.strip().rstrip('.')}; extend its ACL (jobq doctor says by what)"


def wrong_setting(text: str) -> str:
    """What an error of :data:`WRONG_SETTING` means."""
    return (
        f"Redis has no database of this number ({text.strip().rstrip('.')}): correct the number at the end of "
        "JOBQ_REDIS_URL, or raise the server's setting databases"
    )


def no_writes(text: str) -> str:
    """Why a server takes no writes that takes them at other times."""
    if _REPLICA.search(text):
        return "Redis takes no writes: it is a replica"
    if _LOADING.search(text):
        return "Redis is loading its data"
    return f"Redis takes no writes for now: {text}"


def remedy(message: str) -> str:
    """What to do about a Redis that could not be used, by what was said of it; empty: the message says so itself."""
    return next((words for pattern, words in _REMEDIES if pattern.search(message)), _START)
