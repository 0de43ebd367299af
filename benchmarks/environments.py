"""Where the peers live: a virtualenv or an npm folder each, in a cache outside the project, made when it is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PYTHON: Mapping[str, tuple[str, ...]] = {
    "arq": ("arq==0.28.0", "hiredis"),
    "celery": ("celery[redis]==5.7.0", "hiredis"),
    "saq": ("saq[redis]==0.26.4", "hiredis", "typing_extensions"),  # which it imports and does not require
    "streaq": ("streaq==7.2.0", "hiredis"),
    "taskiq": ("taskiq==0.13.0", "taskiq-redis", "hiredis"),
    "tasktiger": ("tasktiger==0.26.3", "hiredis"),
}
NODE: Mapping[str, tuple[str, ...]] = {
    "bull": ("bull@4.16.5", "ioredis"),
    "bullmq": ("bullmq@6.7.0", "ioredis"),
}
"""What is installed for each. rq, dramatiq and huey are in the project's own environment."""

_READY = "installed.txt"
_LIMIT_S = 300


def cache() -> Path:
    """The folder of all environments: ``$BENCH_VENVS``, or ``~/.cache/jobq-bench``."""
    return Path(os.environ.get("BENCH_VENVS", "~/.cache/jobq-bench")).expanduser()


def make(name: str) -> str | None:
    """Make the environment of a peer unless it is there. None: it is ready; else why it cannot be had."""
    wanted = PYTHON.get(name) or NODE[name]
    folder, ready = cache() / name, cache() / name / _READY
    if ready.exists() and ready.read_text().split() == list(wanted):
        return None
    print(f"{name}: installing {', '.join(wanted)} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for command in _commands(name, folder, wanted):
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=_LIMIT_S)
    except FileNotFoundError as error:
        return f"{error.filename} is not installed"
    except subprocess.TimeoutExpired:
        return f"its installation took more than {_LIMIT_S} s"
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        return next((line[:200] for line in lines if "error" in line.lower()), f"exit {error.returncode}")
    ready.write_text("\n".join(wanted) + "\n")
    return None


def program(name: str | None, driver: str) -> str:
    """The interpreter that runs a driver; ``name`` is None for the project's own environment."""
    if driver.endswith(".js"):
        return shutil.which("node") or "node"
    return sys.executable if name is None else str(cache() / name / "bin" / "python")


def versions(name: str) -> dict[str, str]:
    """What is installed there, by package: the peer, its client of Redis and the parser."""
    folder = cache() / name
    if name in NODE:
        # The nested copy is the one in use.
        modules = folder / "node_modules"
        files = {
            package: file
            for package in (name, "ioredis")
            for file in (
                modules / package / "package.json",
                modules / name / "node_modules" / package / "package.json",
            )
            if file.exists()
        }
        return {package: json.loads(file.read_text())["version"] for package, file in files.items()}
    listed = subprocess.run(
        [str(folder / "bin" / "python"), "-m", "pip", "list", "--format=json"],
        capture_output=True,
        text=True,
        check=False,
    )
    shown = {name, "kombu", "taskiq-redis", "redis", "hiredis", "coredis"}
    found = {each["name"].lower(): each["version"] for each in json.loads(listed.stdout or "[]")}
    return {package: found[package] for package in sorted(shown & found.keys())}


def _commands(name: str, folder: Path, wanted: tuple[str, ...]) -> list[list[str]]:
    if name in NODE:
        return [
            ["npm", "init", "-y"],
            ["npm", "install", "--loglevel", "error", "--no-audit", "--no-fund", *wanted],
        ]
    python = str(folder / "bin" / "python")
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
    ]
