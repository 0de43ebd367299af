"""A function's signature as a validator: what a job's params must look like, checked before it is sent."""

from __future__ import annotations

import dataclasses
import inspect
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints
from uuid import UUID

import pydantic
from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr, ValidationError, create_model
from pydantic_core import ErrorDetails, to_json

from jobq.errors import ConfigError, PayloadError, PayloadUnreadableError
from jobq.units import plural

_CONFIG: Final = ConfigDict(
    extra="forbid",
    allow_inf_nan=False,  # JSON has no NaN: it would arrive as something else
    arbitrary_types_allowed=False,
    hide_input_in_errors=True,
    protected_namespaces=(),
    val_json_bytes="base64",
    ser_json_bytes="base64",
)
_PLAIN: Final = frozenset(
    {str, int, float, bool, Decimal, datetime, date, time, timedelta, UUID, SecretStr, type(None)}
)
"""Types whose JSON form pydantic reads equally well as a Python value, which saves a pass over the text."""
_SECRET_TYPES: Final = (SecretStr, SecretBytes, pydantic.Secret)
_MAX_PROBLEMS: Final = 3
_MAX_TEXT: Final = 160


class Secret:
    """Marks a param as secret while callers pass a plain value: ``code: Annotated[str, jobq.Secret]``.

    A secret param is encrypted in Redis, and never appears in logs, events, errors or listings. A param of the
    type ``SecretStr`` is secret without the mark.
    """


class ParamSet:
    """The params of one function.

    Attributes:
        model: The pydantic model made from the signature.
        names: Every param, in the order of the signature.
        secrets: The params that are encrypted and never shown.
    """

    __slots__ = ("_from_json", "_positional", "_read", "_task", "_validate", "model", "names", "secrets")

    def __init__(self, fn: Callable[..., Any], task: str) -> None:
        """Read ``fn``'s signature.

        Raises:
            ConfigError: The signature cannot be stored as JSON params; the message says what to change.
        """
        self._task = task
        signature = _parameters(fn, task)
        hints = _hints(fn, signature, task)
        self.names: tuple[str, ...] = tuple(signature)
        self._positional = tuple(n for n, p in signature.items() if p.kind is not p.KEYWORD_ONLY)
        self.secrets: frozenset[str] = frozenset(n for n, hint in hints.items() if _is_secret(hint))
        for name in signature:
            hidden = next(_hidden_secrets(hints[name]), None) if name not in self.secrets else None
            if hidden is not None:
                raise ConfigError(
                    f"task {task!r}: param {name!r} holds a secret inside ({hidden}), which cannot be "
                    f"encrypted alone: mark the whole param, Annotated[…, jobq.Secret], and use plain fields",
                    task=task,
                )
        self.model = _model(task, signature, hints)
        validator = self.model.__pydantic_validator__
        self._validate: Callable[[Any], BaseModel] = validator.validate_python
        self._read: Callable[[bytes], BaseModel] = validator.validate_json
        self._from_json = not all(_plain(hint) for hint in hints.values())
        self._check_defaults(signature)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's params by name, validated and converted, with the defaults filled in.

        Raises:
            PayloadError: They do not fit the signature. One line, and never a secret's value.
        """
        given: Mapping[str, Any] = self._by_name(args, kwargs) if args else kwargs
        try:
            return self._validate(given).__dict__
        except ValidationError as error:
            message = self._explain(error)
        # Outside the except block: a chained ValidationError would carry the input into tracebacks.
        raise PayloadError(message, task=self._task)

    def load(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Params as they came out of a payload, which are JSON values, as the function takes them.

        Raises:
            PayloadUnreadableError: They do not fit the signature.
        """
        try:
            if self._from_json:
                return self._read(to_json(params)).__dict__
            return self._validate(params).__dict__
        except ValidationError as error:
            message = self._explain(error)
        raise PayloadUnreadableError(message, task=self._task)

    def dump(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """``params`` with ``SecretStr`` and its like unwrapped: what the codec encodes (and encrypts)."""
        plain = dict(params)
        for name in self.secrets:
            if name in plain:
                plain[name] = _unwrap(plain[name])
        return plain

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            raise PayloadError(
                f"task {self._task!r}: takes {plural(len(self._positional), 'positional param')}, got {len(args)}",
                task=self._task,
            )
        given = dict(zip(self._positional, args, strict=False))
        for name in kwargs:
            if name in given:
                raise PayloadError(f"task {self._task!r}: param {name!r} is given twice", task=self._task)
        return {**given, **kwargs}

    def _check_defaults(self, signature: Mapping[str, inspect.Parameter]) -> None:
        defaults = {n: p.default for n, p in signature.items() if p.default is not p.empty}
        try:
            self._validate(defaults)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False):
                name = str(detail["loc"][0]) if detail["loc"] else ""
                if name in defaults:
                    raise ConfigError(
                        f"task {self._task!r}: the default of param {name!r} does not fit its annotation: "
                        f"{_text(detail)}",
                        task=self._task,
                    ) from None

    def _explain(self, error: ValidationError) -> str:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        problems = dict.fromkeys(self._problem(detail) for detail in details)  # unions repeat themselves
        shown = "; ".join(list(problems)[:_MAX_PROBLEMS])
        more = len(problems) - _MAX_PROBLEMS
        return f"task {self._task!r}: {shown}" + (f"; and {more} more" if more > 0 else "")

    def _problem(self, detail: ErrorDetails) -> str:
        name = _one_line(str(detail["loc"][0])) if detail["loc"] else ""
        match detail["type"]:
            case "missing" if len(detail["loc"]) == 1:
                return f"param {name!r} is missing"
            case "extra_forbidden" if len(detail["loc"]) == 1:
                return f"unknown param {name!r} (it takes: {', '.join(self.names) or 'none'})"
        if name in self.secrets:
            # A validator of the application may quote its input, and a key of a dict is part of the value.
            return f"param {name!r} is not valid ({detail['type']}; a secret, so no more is shown)"
        path = ".".join(_one_line(str(part)) for part in detail["loc"]) or "params"
        return f"param {path!r}: {_text(detail)}"


def _parameters(fn: Callable[..., Any], task: str) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(fn).parameters)
    for name, parameter in found.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise ConfigError(
                f"task {task!r}: {star}{name} cannot be checked before the job is sent: name each param, "
                f"or take one of the type list or dict",
                task=task,
            )
        if name.startswith("_"):
            raise ConfigError(f"task {task!r}: rename param {name!r}: no '_' at the start", task=task)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"task {task!r}: remove the '/': params are stored by name", task=task)
    return found


def _hints(fn: Callable[..., Any], signature: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The resolved annotations of the params alone: what the function returns need not resolve."""
    source = inspect.unwrap(fn)
    raw = {n: a for n, a in getattr(source, "__annotations__", {}).items() if n in signature}
    names = getattr(source, "__globals__", {})
    try:
        hints = get_type_hints(SimpleNamespace(__annotations__=raw), globalns=names, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise ConfigError(
            f"task {task!r}: its annotations cannot be read ({error}): import the names they use at the top "
            f"of the module, not only under TYPE_CHECKING",
            task=task,
        ) from error
    return {name: hints.get(name, Any) for name in signature}


def _model(
    task: str, signature: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in signature.items()
    }
    try:
        with warnings.catch_warnings():
            # A param may well be called `json` or `copy`: nobody calls the model's methods of those names.
            warnings.filterwarnings("ignore", message="Field name .* shadows an attribute")
            return create_model(f"{task.rpartition('.')[2]}_params", __config__=_CONFIG, **fields)
    except (pydantic.PydanticUserError, TypeError, NameError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"task {task!r}: its params cannot be stored as JSON: {reason}. Use types that pydantic knows, "
            f"and no param named like a method of a pydantic model",
            task=task,
        ) from error


def _plain(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        return all(mark is Secret or isinstance(mark, Secret) for mark in marks) and _plain(inner)
    return hint in _PLAIN if isinstance(hint, type) else False


def _is_secret(hint: Any) -> bool:
    """Whether the mark or a secret type is anywhere in the annotation, as in ``SecretStr | None``."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        return any(mark is Secret or isinstance(mark, Secret) for mark in marks) or _is_secret(inner)
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, _SECRET_TYPES):
        return True
    return any(_is_secret(part) for part in get_args(hint))


def _hidden_secrets(hint: Any, seen: frozenset[Any] = frozenset()) -> Iterator[str]:
    """Fields of models and dataclasses inside the annotation that are secret."""
    kind = get_origin(hint) or hint
    if isinstance(kind, type) and kind not in seen:
        fields: dict[str, Any] = {}
        if issubclass(kind, BaseModel):
            fields = {name: field.annotation for name, field in kind.model_fields.items()}
        elif dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
            fields = get_type_hints(kind, include_extras=True)
        for name, inner in fields.items():
            if _is_secret(inner):
                yield f"{kind.__name__}.{name}"
            yield from _hidden_secrets(inner, seen | {kind})
    for part in get_args(hint):
        if part is not Ellipsis:
            yield from _hidden_secrets(part, seen)


def _unwrap(value: Any) -> Any:
    match value:
        case SecretStr() | SecretBytes() | pydantic.Secret():
            return value.get_secret_value()
        case dict():
            return {key: _unwrap(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_unwrap(item) for item in value]
    return value


def _text(detail: ErrorDetails) -> str:
    return _one_line(detail["msg"].removeprefix("Value error, "))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"
