"""Shared by every Python driver: the command line, the job bodies, the clock.

A job never touches Redis itself. It appends one 16-byte record (float64 wall time, int32 job index, int32 pid) to
a file on tmpfs, opened O_APPEND: one write(2), about a microsecond, the same for every contender and language. The
benchmark polls the file's size and afterwards checks that every index is there. Index 900000 and up is warm-up;
+1000000 marks an attempt that failed on purpose.
"""

import argparse
import asyncio
import inspect
import itertools
import json
import os
import struct
import subprocess
import sys
import time

URL = os.environ["BENCH_REDIS"]
WARM_BASE = 900_000
WARM = 50
FAILED = 1_000_000
CHUNK = 1000  # jobs handed to a bulk API per call

_pack = struct.Struct("<dii").pack
_fds = {}


def _fd(name, flags):
    key = (name, os.getpid())  # reopened after a fork
    fd = _fds.get(key)
    if fd is None:
        fd = _fds[key] = os.open(os.environ[name], flags | os.O_CREAT, 0o600)
    return fd


def mark(i):
    os.write(_fd("BENCH_MARKS", os.O_WRONLY | os.O_APPEND), _pack(time.time(), i, os.getpid()))


def first_time(i):
    """True once per index: lets a job fail on its first attempt in any library."""
    fd = _fd("BENCH_FLAGS", os.O_RDWR)
    if os.pread(fd, 1, i) == b"x":
        return False
    os.pwrite(fd, b"x", i)
    mark(i + FAILED)
    return True


class Flaky(Exception):
    pass


def payload(i):
    return {"email": "someone@example.com", "code": "%06d" % i}


# job bodies, wrapped by each driver in the library's own decorator
def do_noop(p):
    mark(int(p["code"]))


def do_nap(p):
    time.sleep(0.010)
    mark(int(p["code"]))


async def ado_nap(p):
    await asyncio.sleep(0.010)
    mark(int(p["code"]))


def do_flaky(p):
    i = int(p["code"])
    if first_time(i):
        raise Flaky("first attempt fails")
    mark(i)


def barrier(procs):
    """Hold every worker process until all have finished importing."""
    base = os.environ["BENCH_MARKS"] + ".ready."
    rank = int(os.environ.get("BENCH_RANK", "0"))
    open(base + str(rank), "w").close()
    while not all(os.path.exists(base + str(r)) for r in range(procs)):
        time.sleep(0.005)


def clones(procs):
    """Start procs-1 further copies of this very command; this process works too."""
    if os.environ.get("BENCH_RANK"):
        return
    for rank in range(1, procs):
        subprocess.Popen([sys.executable] + sys.argv, env=dict(os.environ, BENCH_RANK=str(rank)))
    os.environ["BENCH_RANK"] = "0"


async def _call(fn, *a):
    r = fn(*a)
    return (await r) if inspect.isawaitable(r) else r


async def _enqueue_async(d, kind, n, bulk):
    await d.open()
    for i in range(WARM):
        await d.one(kind, payload(WARM_BASE + i))
    t0 = time.perf_counter()
    if bulk:
        for lo in range(0, n, CHUNK):
            await d.bulk(kind, [payload(i) for i in range(lo, min(n, lo + CHUNK))])
    else:
        for i in range(n):
            await d.one(kind, payload(i))
    dt = time.perf_counter() - t0
    await d.close()
    return dt


def _enqueue_sync(d, kind, n, bulk):
    d.open()
    for i in range(WARM):
        d.one(kind, payload(WARM_BASE + i))
    t0 = time.perf_counter()
    if bulk:
        for lo in range(0, n, CHUNK):
            d.bulk(kind, [payload(i) for i in range(lo, min(n, lo + CHUNK))])
    else:
        for i in range(n):
            d.one(kind, payload(i))
    dt = time.perf_counter() - t0
    d.close()
    return dt


async def _paced_async(d, kind, indexes, gap):
    out = []
    await d.open()
    for i in range(20):
        await d.one(kind, payload(WARM_BASE + i))
    await asyncio.sleep(0.7)
    due = time.time()
    for i in indexes:
        due += gap
        await asyncio.sleep(max(0, due - time.time()))
        a = time.time()
        await d.one(kind, payload(i))
        out.append((i, a, time.time()))
    await d.close()
    return out


def _paced_sync(d, kind, indexes, gap):
    out = []
    d.open()
    for i in range(20):
        d.one(kind, payload(WARM_BASE + i))
    time.sleep(0.7)
    due = time.time()
    for i in indexes:
        due += gap
        time.sleep(max(0, due - time.time()))
        a = time.time()
        d.one(kind, payload(i))
        out.append((i, a, time.time()))
    d.close()
    return out


class Base:
    """A driver overrides one/bulk/work; open/close where it needs a client."""

    bulk = None

    def open(self):
        pass

    def close(self):
        pass


def main(d):
    ap = argparse.ArgumentParser()
    sub = ap.add_subparsers(dest="cmd", required=True)
    e = sub.add_parser("enqueue")
    e.add_argument("--kind", default="noop", choices=["noop", "nap", "flaky"])
    e.add_argument("--n", type=int, required=True)
    e.add_argument("--bulk", action="store_true")
    p = sub.add_parser("paced")
    p.add_argument("--kind", default="noop")
    p.add_argument("--n", type=int, default=500)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--gap", type=float, default=0.02)
    p.add_argument("--until", help="go on until this file exists, and then end")
    b = sub.add_parser("call")
    b.add_argument("step")
    b.add_argument("options", type=json.loads)
    w = sub.add_parser("work")
    w.add_argument("--procs", type=int, default=1)
    w.add_argument("--conc", type=int, default=10)
    a = ap.parse_args()
    is_async = inspect.iscoroutinefunction(d.one)
    if a.cmd == "enqueue":
        dt = (
            asyncio.run(_enqueue_async(d, a.kind, a.n, a.bulk))
            if is_async
            else _enqueue_sync(d, a.kind, a.n, a.bulk)
        )
        print(json.dumps({"n": a.n, "seconds": dt}))
    elif a.cmd == "paced":
        indexes = range(a.first, a.first + a.n)
        if a.until:
            indexes = itertools.takewhile(lambda _: not os.path.exists(a.until), itertools.count(a.first))
        rows = (
            asyncio.run(_paced_async(d, a.kind, indexes, a.gap))
            if is_async
            else _paced_sync(d, a.kind, indexes, a.gap)
        )
        print(json.dumps(rows))
    elif a.cmd == "call":  # a step that only this contender has
        print(json.dumps(getattr(d, a.step)(**a.options)))
    else:
        d.work(a.procs, a.conc)
