"""What is kept of an error: as Python prints it, and with a fingerprint that two of the same place share."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from jobq.failures import describe_error


def deep(calls: int, text: str = "x\ny") -> None:
    if calls:
        deep(calls - 1, text)
    raise ValueError(text)


def caused() -> None:
    try:
        deep(1)
    except ValueError as error:
        raise KeyError("z") from error


def meanwhile() -> None:
    try:
        deep(1)
    except ValueError:
        raise KeyError("z")  # noqa: B904 - the case


def alone() -> None:
    try:
        deep(1)
    except ValueError:
        raise KeyError("z") from None


def noted() -> None:
    error = ValueError("n")
    error.add_note("seen in step 2")
    raise error


def grouped() -> None:
    raise ExceptionGroup("g", [ValueError(1), KeyError(2)])


def unparsable() -> None:
    compile("a b", "f", "exec")


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        lambda: deep(3),
        lambda: deep(45),
        lambda: deep(200),
        caused,
        meanwhile,
        alone,
        noted,
        grouped,
        unparsable,
    ],
    ids=["plain", "cut", "long", "cause", "context", "from None", "note", "group", "syntax"],
)
def test_a_traceback_is_what_python_prints(call: Callable[[], object]) -> None:
    for _ in range(2):  # the second time from what is known
        error = raised(call)
        assert describe_error(error, ()).traceback == "".join(traceback.format_exception(error, limit=-20))


def test_the_same_place_with_another_message() -> None:
    first, second = (describe_error(raised(lambda text=text: deep(2, text)), ()) for text in ("a", "b"))
    assert (first.message, second.message) == ("a", "b")
    assert first.fingerprint == second.fingerprint
    assert first.traceback != second.traceback
    assert second.traceback.endswith("ValueError: b\n")


def test_secrets_are_blotted_out_of_both() -> None:
    details = describe_error(raised(lambda: deep(1, "code 4711-AB")), ("4711-AB",))
    assert "4711-AB" not in details.message + details.traceback
