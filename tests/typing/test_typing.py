"""What a type checker says to users: right calls pass, wrong ones are errors with these codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).parent / "cases"
ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[tuple[int, str]]]:
    """One run of mypy over all cases: most of its time goes into the library, which they share."""
    files = sorted(CASES.glob("*.py"))
    config = tmp_path_factory.mktemp("typing") / "mypy.ini"  # a user's: strict, and nothing of ours
    config.write_text("[mypy]\nstrict = True\nfollow_imports = silent\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "--no-error-summary", "--no-pretty",
         "--cache-dir", str(ROOT / ".mypy_cache" / "typing-cases"), *map(str, files)],
        cwd=ROOT, env={"MYPYPATH": "src", "PATH": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found: dict[str, set[tuple[int, str]]] = {file.name: set() for file in files}
    assert run.returncode in (0, 1), run.stdout + run.stderr
    for line in run.stdout.splitlines():
        match = ERROR.match(line)
        if match is not None:
            found[Path(match["file"]).name].add((int(match["line"]), match["code"]))
        else:
            assert ": note:" in line, line
    return found


@pytest.mark.timeout(300)
def test_right_use_is_clean(errors: dict[str, set[tuple[int, str]]]) -> None:
    assert errors["good.py"] == set()


@pytest.mark.timeout(300)
def test_wrong_use_is_an_error(errors: dict[str, set[tuple[int, str]]]) -> None:
    expected = {
        (number, code)
        for number, line in enumerate((CASES / "bad.py").read_text().splitlines(), 1)
        if (match := re.search(r"# E: ([a-z, -]+)$", line))
        for code in match[1].split(", ")
    }
    assert len(expected) > 15
    assert errors["bad.py"] == expected
