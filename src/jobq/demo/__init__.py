"""``jobq demo``: real work through real parts, checked at the end.

A private Redis or Valkey server, a mail server, a payment gateway that is sometimes busy, a database of 100,000
rows, and ``jobq worker`` as a process of its own. What the demo says it has counted.
"""

from __future__ import annotations

import csv
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from jobq import helpers
from jobq.client import Client
from jobq.config import Settings
from jobq.demo.peers import ACCOUNT, ROWS, Gateway, MailServer, make_ledger
from jobq.demo.report import lanes_table, watch
from jobq.demo.tasks import clean_up, import_rates
from jobq.errors import ConfigError, JobqError
from jobq.job import Job, JobState
from jobq.private_server import PrivateServer
from jobq.retry import Backoff

MAILS, PAYMENTS, TWICE, BATCH = 200, 100, 10, 500
_START_S, _RUN_S, _STOP_S = 20.0, 60.0, 15.0
_SIGN_IN_EVERY_S = 0.02
_NEEDED = {"aiosmtpd": "dev", "httpx2": "http", "sqlalchemy": "sql"}  # module: the extra that brings it
# Settings of whoever runs the demo, and of other tools whose names ours understand, are not the demo's.
_FOREIGN = ("JOBQ_", "REDIS_", "RQ_", "QUEUE_", "JOB_")


def run(keep: bool = False) -> int:
    """Run the tour.

    Args:
        keep: Leave server, worker and files until Ctrl-C, to look around.

    Returns:
        0, or 6 when something that was counted is off.

    Raises:
        ConfigError: A package that the demo needs is missing, or there is no Redis server to start.
    """
    _check_packages()
    # Piped, rich would fold the table to 80 columns.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 100)
    folder = Path(tempfile.mkdtemp(prefix="jobq-demo-"))
    try:
        with MailServer() as mails, Gateway() as gateway, PrivateServer() as server:
            make_ledger(folder / "ledger.db")
            environment = _environment(folder, server.url, mails, gateway)
            console.print(
                f"started: Redis at {server.url}, a mail server, a payment gateway, {ROWS:,} transactions"
            )
            return _tour(console, folder, environment, mails, gateway, keep)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _check_packages() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        extras = ",".join(_NEEDED[name] for name in missing)
        raise ConfigError(f"jobq demo needs {' and '.join(missing)}: pip install 'jobq[{extras}]'")


def _environment(folder: Path, redis_url: str, mails: MailServer, gateway: Gateway) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return clean | {
        "JOBQ_REDIS_URL": redis_url,
        "JOBQ_APP": "jobq.demo.tasks",
        "JOBQ_SECRET_KEY": secrets.token_hex(32),
        "JOBQ_SMTP_URL": mails.url,
        "JOBQ_SMTP_FROM": "demo@example.com",
        "JOBQ_PAYMENT_URL": gateway.url,
        "JOBQ_SQL_URL": f"sqlite:///{folder / 'ledger.db'}",
        "JOBQ_EXPORT_DIR": str(folder / "exports"),
        "DEMO_RATES": str(folder / "rates.txt"),
    }


def _tour(
    console: Console,
    folder: Path,
    environment: dict[str, str],
    mails: MailServer,
    gateway: Gateway,
    keep: bool,
) -> int:
    with (
        Client(Settings.load(environ=environment, directory=folder)) as client,
        (folder / "worker.log").open("wb") as log,
    ):
        worker = subprocess.Popen(
            [sys.executable, "-m", "jobq.cli", "worker"],
            env=environment,
            cwd=folder,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then drains the worker
        )
        try:
            _await_worker(client, worker, folder / "worker.log")
            began = time.monotonic()
            export, failing, refused = _enqueue(client)
            totals = {"critical": MAILS, "high": PAYMENTS, "medium": 1, "low": 1, "batch": BATCH}
            console.print(
                f"enqueued: {PAYMENTS} payments ({TWICE} of them twice), 1 export, 1 job that fails, "
                f"{BATCH} batch jobs;\nand while they run, {MAILS} one-time codes, fifty a second\n"
            )
            signing_in = threading.Thread(target=_send_codes, args=(client,), name="sign-ins", daemon=True)
            signing_in.start()
            stats = watch(client, totals, console, lambda: worker.poll() is None, _RUN_S)
            console.print()
            console.print(lanes_table(stats, totals, {"high": refused}))
            console.print(f"{sum(totals.values()):,} jobs in {time.monotonic() - began:.1f} s\n")
            repaired = _repair(console, environment, folder, failing)
            good = _verify(
                console,
                {
                    f"{MAILS} mails received, one per address": len(mails.received)
                    == MAILS
                    == mails.received.total(),
                    f"{PAYMENTS} payments charged, each once": len(gateway.charges) == PAYMENTS
                    and set(gateway.charges.values()) == {1},
                    f"the busy gateway was asked again {gateway.refused} times": gateway.refused > 0,
                    f"{TWICE} duplicates refused": refused == TWICE,
                    f"{BATCH} batch jobs succeeded": stats.queues["batch"].succeeded == BATCH,
                    f"{ROWS:,} rows in the file, as in the table": _rows(export)
                    == _rows_in_table(folder)
                    == ROWS,
                    "the failing job became a dead letter, and succeeded once repaired": repaired,
                },
            )
            if keep:
                _stay(console, environment, folder)
            return 0 if good else 6
        finally:
            _stop(worker)


def _await_worker(client: Client, worker: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _START_S
    while len(client.workers.list()) < len(client.specs):
        if worker.poll() is not None or time.monotonic() > ends:
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise JobqError("\n".join(["the worker did not start; its last words:", *(words or ["none"])]))
        time.sleep(0.05)


def _enqueue(client: Client) -> tuple[Job, Job, int]:
    """All of the demo's jobs but the codes.

    Returns:
        The export, the job that fails, and how many duplicates were refused.
    """
    for page in range(0, BATCH, 100):
        clean_up.options(client=client).enqueue_many([{"page": page + number} for number in range(100)])
    failing = import_rates.options(client=client).enqueue()
    export = helpers.export_transactions.options(client=client).enqueue(
        account_id=ACCOUNT, start="2026-01-01", end="2026-01-31", format="csv"
    )
    payments = helpers.process_payment.options(client=client, backoff=Backoff(base=0.3, cap=2))
    # The second of each pair follows at once, in the same atomic step: its first cannot have ended by then.
    wanted = [number for number in range(PAYMENTS) for _ in range(2 if number < TWICE else 1)]
    jobs = payments.enqueue_many(
        [
            {"payment_id": f"pay_{number}", "amount": f"{number + 1}.50", "currency": "EUR"}
            for number in wanted
        ]
    )
    return export, failing, sum(job.deduplicated for job in jobs)


def _send_codes(client: Client) -> None:
    """People sign in, fifty a second, while everything else is under way."""
    codes = helpers.send_otp.options(client=client)
    for number in range(MAILS):
        codes.enqueue(email=f"user{number}@example.com", code=f"{secrets.randbelow(10**6):06d}")
        time.sleep(_SIGN_IN_EVERY_S)


def _repair(console: Console, environment: dict[str, str], folder: Path, failing: Job) -> bool:
    """Mend what made the job fail, and replay it as an operator would."""
    was_dead = failing.refresh().state is JobState.DEAD
    (folder / "rates.txt").write_text("EUR 1.00\n", encoding="utf-8")
    console.print("repaired the failing job's file; $ jobq retry-failed --yes")
    command = [sys.executable, "-m", "jobq.cli", "retry-failed", "--yes"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    for line in (done.stdout + done.stderr).splitlines():
        console.print(f"  {line}", markup=False)
    try:
        return was_dead and done.returncode == 0 and failing.wait(timeout=10).state is JobState.SUCCEEDED
    except TimeoutError:
        return False


def _rows(export: Job) -> int:
    """Data rows of the exported file."""
    try:
        path = export.result(timeout=20)["path"]
        with Path(path).open(newline="", encoding="utf-8") as file:
            return sum(1 for _ in csv.reader(file)) - 1
    except Exception as error:  # whatever went wrong with the export, the check says that it is off
        return -len(str(error)) - 1


def _rows_in_table(folder: Path) -> int:
    database = sqlite3.connect(folder / "ledger.db")
    try:
        count: int = database.execute("SELECT count(*) FROM transactions").fetchone()[0]
        return count
    finally:
        database.close()


def _verify(console: Console, checks: Mapping[str, bool]) -> bool:
    console.print()
    for text, holds in checks.items():
        console.print(f"{'[green]ok[/]  ' if holds else '[red]OFF[/] '} {text}")
    return all(checks.values())


def _stay(console: Console, environment: Mapping[str, str], folder: Path) -> None:
    console.print(f"\nlook around, Ctrl-C ends it all; files in {folder}:")
    console.print(f"  export JOBQ_REDIS_URL={environment['JOBQ_REDIS_URL']}", markup=False)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("ending")


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # A second Ctrl-C ends the wait, and must not leave the worker behind: it is in a session of its own.
        if worker.poll() is None:
            worker.kill()
            worker.wait()
