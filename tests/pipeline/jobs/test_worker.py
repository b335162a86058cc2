"""The processes of a private Ray: where they listen, what their death costs, how they are renewed, what is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from builders import REPOSITORY, tar_hashes
from planted import plant, processes_of, wait_for

from manifests.errors import Stopped
from manifests.process_info import started
from pipeline.jobs import ray_cleanup, worker
from pipeline.jobs.cluster_machines import Demand, Slots
from pipeline.jobs.ray_jobs import MAX_LOSSES, RunningJobs
from pipeline.plan import environment
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.environment import CODE, difference, package_folders, versions_here
from pipeline.plan.plan import make_plan


def listening(pids: set[int]) -> set[str]:
    """Addresses (proc(5), hexadecimal) at which processes listen."""
    sockets = set()
    for pid in pids:
        try:
            sockets |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


def longest_folder(request: pytest.FixtureRequest) -> Path:
    """A folder whose name just leaves room for the names of sockets below it."""
    folder = Path(tempfile.mkdtemp(prefix="r" * (ray_cleanup._LONGEST - 13), dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(folder))
    assert len(str(folder)) == ray_cleanup._LONGEST
    return folder


@pytest.mark.slow
def test_killed_workers_cost_time_only_and_all_ports_are_on_loopback(planted_tree, tmp_path, request) -> None:
    commands, out, draw = plant(planted_tree), tmp_path / "out", random.Random(0)
    commands("build", "planted", "--out", tmp_path / "unbroken", "--workers", 0)
    commands.environment["ASSET_TAKES"] = "0.1"
    commands.environment["RAY_TMPDIR"] = str(longest_folder(request))
    process = commands.start("build", "planted", "--out", out, "--workers", 2, stderr=subprocess.PIPE, text=True)
    killed = 0
    while killed < 3:
        wait_for(lambda: process.poll() is not None or "ray::work" in processes_of(process.pid).values())
        assert process.poll() is None, process.stderr.read()
        if killed == 0:
            places = listening({process.pid, *processes_of(process.pid)})
            assert places  # only 127.0.0.1, and the same as IPv6
            assert places <= {"0100007F", "0000000000000000FFFF00000100007F"}
        time.sleep(draw.uniform(0, 0.4))
        for pid, command in processes_of(process.pid).items():
            if command == "ray::work":
                os.kill(pid, signal.SIGKILL)
                killed += 1
                break
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert err.count("again") == killed
    assert tar_hashes(out) == tar_hashes(tmp_path / "unbroken")
    found = json.loads(commands("check", out, "--json").stdout)
    assert (found["ok"], found["samples"], found["failures"]) == (True, 40, [])


@pytest.mark.slow
def test_workers_are_renewed(planted_tree, tmp_path) -> None:
    """After 1,000 assets; a shard of 1,000 or more is one call of a worker's life."""
    commands, seen = plant(planted_tree), tmp_path / "seen"
    cluster = planted_tree / "pipeline/jobs/ray_cluster.py"
    cluster.write_text(cluster.read_text().replace("ASSETS_PER_WORKER = 1000", "ASSETS_PER_WORKER = 8"))
    commands.environment["WORKERS_SEEN"] = str(seen)
    commands("build", "planted", "--out", tmp_path / "out", "--workers", 1)
    pids = seen.read_text().split()
    assert len(pids) == 40
    assert [len(list(filter(pid.__eq__, pids))) for pid in dict.fromkeys(pids)] == [8] * 5


def test_what_a_killed_driver_leaves_is_ended_by_the_next_start(planted_tree, tmp_path, monkeypatch) -> None:
    """Builds of other tests, which would end it as well, do not know these: they carry another mark."""
    commands, out = plant(planted_tree), tmp_path / "out"
    text = (planted_tree / "pipeline/jobs/ray_cleanup.py").read_text()
    for name, own in (("MARK", f"DRIVER_{os.getpid()}"), ("_PREFIX", f"ray-{os.getpid()}-")):
        text = text.replace(f'{name} = "{getattr(ray_cleanup, name)}"', f'{name} = "{own}"')
        assert own in text
        monkeypatch.setattr(ray_cleanup, name, own)
    (planted_tree / "pipeline/jobs/ray_cleanup.py").write_text(text)
    commands.environment["ASSET_TAKES"] = "0.2"
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = commands.start("build", "planted", "--out", out, "--workers", 1, **quiet)
    wait_for(lambda: "ray::work" in processes_of(process.pid).values())
    (folder,) = Path(ray_cleanup._parent()).glob(f"{ray_cleanup._PREFIX}*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # Ray opens its own, which lies inside, to everybody
    assert list(folder.glob("*/session_*/sockets/*"))
    name = (folder / "driver").read_text()
    assert name.startswith(f"{process.pid}:")
    alive = f"{os.getpid()}:{started(os.getpid())}:{name.rpartition(':')[2]}"
    others = {
        "a live driver's": {ray_cleanup.MARK: alive},
        "another namespace's": {ray_cleanup.MARK: f"{name.rpartition(':')[0]}:7"},
        "nobody's": {},
    }
    bystanders = [subprocess.Popen(["sleep", "60"], env=variables) for variables in others.values()]
    process.kill()
    process.wait()
    assert processes_of(process.pid)  # Ray's agents would stay for a minute
    try:
        del commands.environment["ASSET_TAKES"]
        said = commands("build", "planted", "--out", out, "--workers", 1).stderr
        assert int(said.split("ended ")[1].split(" processes")[0]) >= 1
        assert set(processes_of(process.pid)) == {bystanders[1].pid}
        assert not folder.exists()
        assert [bystander.poll() for bystander in bystanders] == [None] * 3
    finally:
        for bystander in bystanders:
            bystander.kill()
            bystander.wait()


def test_a_child_that_hangs_ends_with_its_parent(planted_tree, tmp_path) -> None:
    """A worker that is killed cannot end the child in which a hanging asset is tried; the kernel does."""
    commands = plant(planted_tree)
    program = (
        "from pipeline.jobs.isolated_worker import CarefulMaker\n"
        "from pipeline.plan.build_recipe import read_recipe\n"
        "from pipeline.plan.plan import make_plan\n"
        f"plan, jobs = make_plan(read_recipe('planted', {{}}), None, {str(tmp_path / 'out')!r})\n"
        "maker = CarefulMaker(plan)\n"
        "maker.build(jobs[0].assets[0])\n"
    )
    seen = tmp_path / "seen"
    variables = commands.environment | {"ASSET_TAKES": "100", "WORKERS_SEEN": str(seen)}
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=planted_tree, env=variables)
    wait_for(seen.exists)
    wait_for(lambda: bool(seen.read_text()))
    child = int(seen.read_text())
    assert child != parent.pid
    assert started(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: started(child) is None, 5)


def test_what_a_machine_has_room_for() -> None:
    machine = {"CPU": 8.0, "memory": 4 * 1024.0**3, "GPU": 2.0}
    assert Demand().fits(machine) == 8
    assert Demand(memory_mb=1000).fits(machine) == 4
    assert Demand(gpus=1, memory_mb=100).fits(machine) == 2
    assert Demand(gpus=1).fits({"CPU": 8.0}) == 0
    assert Demand(memory_mb=5000).fits(machine) == 0
    assert Demand(gpus=1, memory_mb=100).options == {"num_cpus": 1, "num_gpus": 1, "memory": 100 << 20}
    assert Demand().options == {"num_cpus": 1}


class _Ray:
    """Only what `_Slots` asks: machines that come and go cannot be had on time."""

    def __init__(self, head: str) -> None:
        self.there, self.gcs_address = 3, head

    def get_runtime_context(self) -> _Ray:
        return self

    def nodes(self) -> list[dict]:
        return [{"Alive": n < self.there, "Resources": {"CPU": 2.0}} for n in range(3)] + [
            {"Alive": True, "Resources": {}}
        ]


def test_jobs_are_handed_out_by_the_machines_that_live(monkeypatch) -> None:
    head = socket.create_server(("127.0.0.1", 0))
    ray, now = _Ray(f"127.0.0.1:{head.getsockname()[1]}"), [1000.0]
    monkeypatch.setattr("pipeline.jobs.cluster_machines.time.monotonic", lambda: now[0])
    slots = Slots(ray, 4, Demand())
    assert slots.count() == 8
    ray.there = 0
    now[0] += 11
    with pytest.raises(Stopped, match="Ray's processes on this machine have ended, or hang; what is finished is kept"):
        slots.count()
    ray.there = 3
    slots = Slots(ray, None, Demand())
    assert slots.count() == 12  # six workers, one job that runs and one that waits for each
    ray.there = 1
    assert slots.count() == 12
    now[0] += 11
    assert slots.count() == 4
    ray.there = 0
    now[0] += 590
    assert slots.count() == 1
    now[0] += 20
    with pytest.raises(Stopped, match="no machine of the cluster has had 1 core"):
        slots.count()
    head.close()
    slots = Slots(ray, None, Demand())
    now[0] += 29
    assert slots.count() == 1
    now[0] += 2
    with pytest.raises(Stopped, match=r"the head of the cluster \(127.0.0.1:\d+\) does not answer any more"):
        slots.count()


def test_a_job_is_not_tried_for_ever(tmp_path) -> None:
    _, jobs = make_plan(read_recipe("parametric", {"parametric": {"objects": 3}}), None, str(tmp_path))
    running = RunningJobs.__new__(RunningJobs)
    running._losses = Counter()
    for _ in range(MAX_LOSSES - 1):
        running._note_loss(jobs[0], OSError("gone"))
    with pytest.raises(Stopped, match=f"shard {jobs[0].split}-00000 lost its worker or machine {MAX_LOSSES} times"):
        running._note_loss(jobs[0], OSError("gone"))


def test_versions_are_compared(tmp_path) -> None:
    here = versions_here()
    assert set(here) >= {"python", "numpy", "pillow", "trimesh", CODE}
    assert difference(here, dict(here)) is None
    assert difference(here, here | {"trimesh": "0.0"}) == f"trimesh {here['trimesh']} here, 0.0 there"
    assert difference(here, {k: v for k, v in here.items() if k != "pillow"}).endswith("missing there")
    assert {Path(folder) for folder in package_folders()} == {
        REPOSITORY / name for name in ("manifests", "renderers", "pipeline")
    }
    plan, jobs = make_plan(read_recipe("parametric", {"parametric": {"objects": 3}}), None, str(tmp_path / "out"))
    with pytest.raises(Stopped, match=r"a machine that joined the cluster has other versions: our code 0 here"):
        next(worker.work(jobs[0], plan, False, here | {CODE: "0"}))
    assert not (tmp_path / "out").exists()


def test_our_own_code_is_told_by_its_bytes(tmp_path) -> None:
    """A machine whose copy differs in one letter must not build shards of the same dataset."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        (folder / "inner").mkdir(parents=True)
        (folder / "a.py").write_text("x = 1\n")
        (folder / "inner" / "b.toml").write_text("y = 1\n")
    names = [str(folder) for folder in folders]
    first = environment._digest(names)
    assert environment._digest(names) == first
    (folders[0] / "inner" / "notes.txt").write_text("no code")
    assert environment._digest(names) == first
    seen = {first}
    for path in (folders[0] / "a.py", folders[1] / "inner" / "b.toml"):
        path.write_text(path.read_text().replace("1", "2"))
        seen.add(environment._digest(names))
    (folders[0] / "a.py").rename(folders[0] / "c.py")
    seen.add(environment._digest(names))
    assert len(seen) == 4
