"""Which test shows which row of the checklist: ``python -m tests.checklist`` writes ``docs/checklist.md``.

Rows are in ``docs/checklist.toml``; a test names those it shows with ``@pytest.mark.covers("D-02", …)``.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "checklist.toml"
PAGE = ROOT / "docs" / "checklist.md"
HEAD = """# Checklist

What five production systems did with other queues, row by row, and the tests that show that jobq does it.
Written by `python -m tests.checklist`.
"""


def rows() -> dict[str, dict[str, str]]:
    """Wording of each row by its id, by section."""
    return tomllib.loads(ROWS.read_text())


def marks() -> dict[str, list[str]]:
    """Tests by the id of the row they show, as ``path::name``, found without importing them."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.joinpath("tests").rglob("test_*.py")):
        for name, row in _marked(ast.parse(path.read_text())):
            found[row].append(f"{path.relative_to(ROOT)}::{name}")
    return dict(found)


def _marked(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for each in node.decorator_list:
            if (
                isinstance(each, ast.Call)
                and isinstance(each.func, ast.Attribute)
                and each.func.attr == "covers"
            ):
                yield from ((node.name, ast.literal_eval(row)) for row in each.args)


def page() -> str:
    """The whole page."""
    by_row = marks()
    parts = [HEAD]
    for section, lines in rows().items():
        parts.append(f"## {section}\n\n| id | row | shown by |\n|---|---|---|")
        for id_, text in lines.items():
            shown = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in by_row.get(id_, []))
            parts.append(f"| {id_} | {text.replace('|', '/')} | {shown or '**nothing yet**'} |")
        parts.append("")
    return "\n".join(parts)


def missing() -> list[str]:
    """Rows that no test shows."""
    by_row = marks()
    return [id_ for lines in rows().values() for id_ in lines if id_ not in by_row]


if __name__ == "__main__":
    PAGE.write_text(page())
    if left := missing():
        sys.stderr.write(f"no test shows: {', '.join(left)}\n")
