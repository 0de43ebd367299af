"""Where the kernel counts its kills for lack of memory: files as hosts, services and containers show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobq.worker.memory import OomWatch, oom_kill_file, oom_kills, rss_kb

V2 = "low 0\nhigh 0\nmax 7\noom 1\noom_kill {}\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def mounted(root: str, at: Path | str, kind: str, options: str = "rw") -> str:
    return f"40 31 0:38 {root} {at} rw,nosuid shared:9 - {kind} {kind} {options}\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


def write(proc: Path, cgroup: str, mountinfo: str) -> None:
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text("24 1 0:22 / /proc rw - proc proc rw\n" + mountinfo)


def count(at: Path, text: str) -> Path:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(text)
    return at


def test_a_service_on_a_host_of_version_2(proc: Path, tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    write(proc, "0::/system.slice/jobq.service\n", mounted("/", top, "cgroup2"))
    file = count(top / "system.slice/jobq.service/memory.events", V2.format(3))
    assert oom_kill_file(proc) == file
    assert oom_kills(file) == 3


def test_a_container_of_version_2_with_a_namespace(proc: Path, tmp_path: Path) -> None:
    write(proc, "0::/\n", mounted("/", tmp_path / "cgroup", "cgroup2"))
    file = count(tmp_path / "cgroup/memory.events", V2.format(1))
    assert oom_kill_file(proc) == file


def test_a_service_on_a_host_of_version_1(proc: Path, tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    write(
        proc,
        "9:name=systemd:/jobq.service\n4:cpuset,memory:/jobq.service\n1:cpu:/other\n0::/jobq.service\n",
        mounted("/", top / "cpu", "cgroup", "rw,cpu")
        + mounted("/", top / "mem", "cgroup", "rw,cpuset,memory")
        + mounted("/", top / "unified", "cgroup2"),
    )
    file = count(top / "mem/jobq.service/memory.oom_control", V1.format(2))
    count(top / "mem/memory.oom_control", V1.format(99))
    assert oom_kill_file(proc) == file
    assert oom_kills(file) == 2


@pytest.mark.parametrize("root", ["/docker/abc", "/../../other"])
def test_a_container_of_version_1_that_sees_its_part_alone(proc: Path, tmp_path: Path, root: str) -> None:
    place = tmp_path / "with space"
    write(
        proc, "4:memory:/docker/abc\n", mounted(root, str(place).replace(" ", "\\040"), "cgroup", "rw,memory")
    )
    file = count(place / "memory.oom_control", V1.format(4))
    assert oom_kill_file(proc) == file


@pytest.mark.parametrize("text", ["", "oom_kill_disable 0\nunder_oom 0\n"])
def test_a_kernel_that_does_not_count(proc: Path, tmp_path: Path, text: str) -> None:
    write(proc, "4:memory:/\n", mounted("/", tmp_path, "cgroup", "rw,memory"))
    count(tmp_path / "memory.oom_control", text)
    assert oom_kill_file(proc) is None
    assert oom_kills(None) == 0


def test_a_system_without_cgroups(tmp_path: Path) -> None:
    assert oom_kill_file(tmp_path) is None
    assert oom_kills(tmp_path / "gone") == 0


def test_by_default_it_watches_the_cgroup_of_this_process() -> None:
    watch = OomWatch()
    assert not watch.explains(-9, 0.0)
    assert rss_kb() > 1_000
