"""What ``import jobq`` offers, and what it costs."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import jobq
from jobq import errors
from tests import checklist

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"click", "cryptography", "pydantic", "pydantic_settings", "redis", "rich", "rq", "structlog"}


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_every_public_name_is_there_once_and_sorted() -> None:
    assert jobq.__all__ == sorted(set(jobq.__all__))
    for name in jobq.__all__:
        assert getattr(jobq, name) is not None
        assert name in dir(jobq)


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse(Path(jobq.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "jobq"
        for alias in node.names
    }
    assert {*seen, "__version__"} == set(jobq.__all__)
    for name, module in seen.items():
        assert getattr(import_module(module or ""), name) is getattr(jobq, name)


def test_every_error_is_public_and_has_the_one_root() -> None:
    found = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == "jobq.errors"
    }
    assert set(found) <= set(jobq.__all__)
    for name, kind in found.items():
        assert issubclass(kind, errors.JobqError) == name.endswith("Error"), name


def public_members(name: str) -> Iterator[tuple[str, object]]:
    value = getattr(jobq, name)
    yield name, value
    if isinstance(value, type):
        for member, inner in vars(value).items():
            if not member.startswith("_") and (isinstance(inner, property) or inspect.isfunction(inner)):
                yield f"{name}.{member}", inner


@pytest.mark.parametrize("name", [name for name in jobq.__all__ if name != "__version__"])
def test_every_public_name_and_method_is_documented(name: str) -> None:
    undocumented = [path for path, value in public_members(name) if not (value.__doc__ or "").strip()]
    assert not undocumented


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = jobq.nonsense  # type: ignore[attr-defined]


def test_no_public_name_is_a_submodule() -> None:
    """Importing a submodule binds its name on the package: ``task.py`` would replace ``jobq.task``."""
    modules = {module.name for module in pkgutil.iter_modules(jobq.__path__)}
    assert not modules & set(jobq.__all__)


def test_helpers_are_reachable_without_an_import_of_their_own() -> None:
    assert "jobq.helpers" in modules_after("import jobq; jobq.helpers")


def test_import_loads_nothing_heavy() -> None:
    loaded = modules_after("import jobq")
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("jobq")} == {"jobq"}


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert jobq.__version__ == project["version"]
    assert f"## {jobq.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_row_of_the_checklist_has_a_test_and_the_page_says_which() -> None:
    assert checklist.missing() == []
    known = {row for rows in checklist.rows().values() for row in rows}
    unknown = {row for row in checklist.marks() if row[0] in "PQDBOTLCY" and row not in known}
    assert unknown == set()
    assert checklist.PAGE.read_text() == checklist.page(), "run: python -m tests.checklist"
