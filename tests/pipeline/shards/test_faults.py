"""Bad files, and loaders that crash, hang or eat memory: each a recorded Failure, and the rest is built."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from builders import SMALL, Commands, interruptible, stored, tar_hashes, write_off
from planted import plant

from manifests.samples import decode_array

PLANTED = """
import os, signal, time
from pathlib import Path
from manifests.records import Asset
from pipeline.datasets.synthetic.generator import generate
from pipeline.formats.mesh import RawShape
from pipeline.sources.source_files import read_source

NEEDS_SOURCE = False
BAD = {"segfault": 3, "hang": 5, "memory": 8, "exit": 10, "raises": 13, "unreadable": 15}

def assets(root, table, options):
    names = {number: kind for kind, number in BAD.items()}
    for i in range(16):
        yield Asset(names.get(i, f"good{i}"), "planted", "train", "thing")

def read(asset, root, options):
    with open(os.environ["TRIES"], "a") as file:
        file.write(asset.id + "\\n")
    if asset.id in BAD and "HARMLESS" in os.environ:
        raise ValueError("bad, but harmless")
    if asset.id == "unreadable":
        read_source(Path("/proc/self"), "mem")  # the kernel's own EIO: nothing is mapped at its beginning
    if asset.id == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if asset.id == "hang":
        import re
        re.match(r"(a+)+$", "a" * 60 + "b")  # minutes in C, with the GIL held
    if asset.id == "memory":
        held = []
        while True:
            held.append(bytearray(20_000_000))
            time.sleep(0.005)
    if asset.id == "exit":
        os._exit(7)
    if asset.id == "raises":
        raise KeyError("a loader's own mistake")
    return RawShape(mesh=generate("mug", 0, int(asset.id[4:])))
"""


def plant_faults(tree: Path) -> Commands:
    limits = {"asset_seconds": 3, "asset_memory_mb": 900}
    return plant(tree, PLANTED, shard_size=8, views=["rgb12", "depth10"], num_points=8192, fps_prefix=1024, **limits)


@pytest.mark.slow
def test_crashes_hangs_and_memory_are_failures_of_their_asset(planted_tree, tmp_path) -> None:
    """Each is tried three times at most (the plain way, then twice in a child), and costs no byte of the others."""
    commands, out, tries = plant_faults(planted_tree), tmp_path / "out", tmp_path / "tries"
    commands.environment["TRIES"] = str(tries)
    command = ("build", "planted", "--out", out, "--workers", 2, *SMALL)
    message = commands(*command, code=1).stderr
    assert "more than max_failed_fraction=0.01" in message
    found = json.loads(commands("check", out, "--json").stdout)
    reasons = {f["id"]: (f["stage"], f["reason"]) for f in found["failures"]}
    assert found["samples"] == 10
    assert set(reasons) == {"segfault", "hang", "memory", "exit", "raises", "unreadable"}
    assert {stage for stage, _ in reasons.values()} == {"load"}
    assert "SIGSEGV" in reasons["segfault"][1]
    assert reasons["hang"][1].startswith("timeout:")
    assert reasons["memory"][1].startswith("memory:")
    assert "exit code 7" in reasons["exit"][1]
    assert "a loader's own mistake" in reasons["raises"][1]
    assert reasons["unreadable"][1] == "cannot be read: Input/output error"
    tried = Counter(tries.read_text().split())
    assert all(2 <= tried[id] <= 3 for id in ("segfault", "hang", "exit"))
    assert max(tried.values()) <= 3
    commands.environment["HARMLESS"] = "yes"
    commands(*command[:3], tmp_path / "unbroken", "--workers", 0, *SMALL, code=1)
    assert tar_hashes(out) == tar_hashes(tmp_path / "unbroken")
    del commands.environment["HARMLESS"]
    healed = (
        (planted_tree / "pipeline/datasets/planted.py").read_text().replace('if asset.id == "segfault"', "if False")
    )
    healed = healed.replace("int(asset.id[4:])", "int(asset.id[4:] or 0) if asset.id.startswith('good') else 0")
    (planted_tree / "pipeline/datasets/planted.py").write_text(healed)
    commands(*command, "--retry", "crash", code=1)
    found = json.loads(commands("check", out, "--json").stdout)
    assert (found["ok"], found["samples"]) == (True, 11)
    assert "segfault" not in {f["id"] for f in found["failures"]}


SLOW_VIEWS = """
import time
from renderers.point_depth import *
from renderers.point_depth import draw_points as _draw

def draw_points(points, preset, cameras):
    import os
    marked = os.environ.get("SLOW_FROM")
    if marked and abs(float(points[0].sum())) < float(marked):
        time.sleep(60)
    return _draw(points, preset, cameras)
"""


@pytest.mark.slow
def test_retry_touches_the_shards_with_such_failures_only(planted_tree, tmp_path) -> None:
    """Views that take too long are failures of their set; `build` and `views` make them again, once it is mended."""
    (planted_tree / "renderers/slow.py").write_text(SLOW_VIEWS)
    backends = planted_tree / "renderers/backend_table.py"
    backends.write_text(backends.read_text().replace('("renderers.point_depth"', '("renderers.slow"'))
    commands, out = Commands(planted_tree), tmp_path / "out"
    small = ("num_points=64", "fps_prefix=16", "asset_seconds=3", "max_failed_fraction=1", "views=['depth10']")
    command = ("build", "parametric", "parametric.objects=12", "shard_size=2", *small)
    commands(*command, "--out", tmp_path / "unbroken", "--workers", 0)
    clouds = [decode_array(sample.members["points.npy"]) for sample in stored(tmp_path / "unbroken").values()]
    sums = sorted(abs(float(points[0].sum())) for points in clouds)
    commands.environment["SLOW_FROM"] = str((sums[0] + sums[1]) / 2)  # one object
    commands(*command, "--out", out, "--workers", 1)
    found = json.loads(commands("check", out, "--json").stdout)
    assert (found["samples"], found["view_sets"]["depth10"]["failures"]) == (12, 1)
    (bad,) = [p for p in (out / "views/depth10").glob("*-?????.json") if json.loads(p.read_text())["failures"]]
    assert json.loads(bad.read_text())["failures"][0]["reason"].startswith("timeout:")
    del commands.environment["SLOW_FROM"]
    shutil.copytree(out, tmp_path / "copy")
    for code, again in (
        (0, (*command, "--out", out, "--retry", "timeout,memory", "--workers", 0)),
        (1, ("views", "depth10", "--shards", tmp_path / "copy", "--retry", "timeout,memory", "--workers", 0)),
    ):
        folder = out if again[0] == "build" else tmp_path / "copy"
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
        commands(*(part if part != "timeout,memory" else "crash,data" for part in again), code=code)
        assert all(path.stat().st_mtime_ns == at for path, at in before.items())
        commands(*again)
        changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
        assert changed == {folder / "views/depth10" / f"{bad.stem}.tar"}
        assert tar_hashes(folder) == tar_hashes(tmp_path / "unbroken")
    assert (
        "--retry nothing: not one of"
        in commands("views", "depth10", "--shards", out, "--retry", "nothing", code=2).stderr
    )


def test_bad_files_are_failures_with_a_reason(pipeline, tmp_path) -> None:
    source = tmp_path / "ModelNet40"
    train = source / "chair" / "train"
    good = write_off(train / "chair_0001.off").read_text()
    (train / "chair_0002.off").write_text(good[: len(good) // 2])
    (train / "chair_0003.off").write_text("")
    (train / "chair_0004.off").write_text(good.replace("0.0 1.0 0.0", "nan 1.0 0.0"))
    (train / "chair_0005.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    write_off(train / "chair_0006.off", faces=False)
    (train / "chair_0007.off").write_text(good.replace("OFF\n4 4", "OFF\n4000 4"))
    (train / "chair_0008.off").mkdir()
    (train / "chair_0009.off").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (train / "chair_0010.off").symlink_to(tmp_path / "nowhere")
    (train / "chair_0011.off").write_text(good.replace("OFF\n4 4", "OFF\n4 4000"))
    before = {p: p.read_bytes() for p in sorted(train.iterdir()) if p.is_file()}
    out = tmp_path / "out"
    command = ("build", "modelnet40", "--source", source, "--out", out, "--workers", 0, "allow_partial=true", *SMALL)
    pipeline(*command, code=1)
    found = json.loads(pipeline("check", out, "--json").stdout)
    reasons = {f["key"]: f"{f['stage']}: {f['reason']}" for f in found["failures"]}
    assert found["samples"] == 1
    expected = {
        "chair_0002": "load: .*(cut|announced|lines)",
        "chair_0003": "load: the file is empty",
        "chair_0004": "load: .*not finite",
        "chair_0005": "sample: zero area",
        "chair_0006": "load: the file has no faces",
        "chair_0007": "load: .*cut, or lying",
        "chair_0008": "load: a folder",
        "chair_0009": "load: not a text file",
        "chair_0010": "load: cannot be read",
        "chair_0011": "load: .*(cut|announced|lines)",
    }
    assert set(reasons) == set(expected)
    for key, pattern in expected.items():
        assert __import__("re").match(pattern, reasons[key]), (key, reasons[key])
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_a_failure(pipeline, tmp_path) -> None:
    path = write_off(tmp_path / "mine" / "a.off")
    path.chmod(0)
    pipeline("build", "meshes", "--source", tmp_path / "mine", "--out", tmp_path / "out", "--workers", 0, code=1)
    found = json.loads(pipeline("check", tmp_path / "out", "--json").stdout)
    assert "Permission denied" in found["failures"][0]["reason"]


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))


def test_a_disk_that_takes_no_more_stops_the_build_and_the_rerun_completes(pipeline, tmp_path) -> None:
    common = ("build", "parametric", "--workers", 0, "parametric.objects=20", "shard_size=4", *SMALL)
    message = pipeline(*common, "--out", tmp_path / "out", code=3, preexec_fn=limit_file_size).stderr
    assert "cannot write" in message.splitlines()[-1]
    assert "run the same again" in message.splitlines()[-1]
    pipeline(*common, "--out", tmp_path / "out")
    pipeline(*common, "--out", tmp_path / "fresh")
    assert tar_hashes(tmp_path / "out") == tar_hashes(tmp_path / "fresh")
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.slow
def test_a_full_disk_with_workers(pipeline, tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        common = ("build", "parametric", "--workers", 2, "parametric.objects=20", "shard_size=4", *SMALL)
        message = pipeline(*common, "--out", disk / "out", code=3).stderr
        assert "No space left on device" in message.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        pipeline(*common, "--out", disk / "out")
        assert json.loads(pipeline("check", disk / "out", "--json").stdout)["ok"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("stale", [False, True])
def test_builds_started_at_once_into_one_folder(pipeline, tmp_path, stale: bool) -> None:
    """One of them builds, the others say so and write nothing; also where a killed one has left its lock."""
    out = tmp_path / "out"
    objects = ("parametric.objects=60", "shard_size=4", *SMALL[:2], "views=['depth10']")
    if stale:
        out.mkdir()
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": "1", "renewed": time.time()}
        (out / "build.lock").write_text(json.dumps(holder))
        (out / "assets.jsonl").write_text("half of it")  # it was killed before it wrote a manifest
    command = ("build", "parametric", "--out", out, "--workers", 0, *objects)
    started = [pipeline.start(*command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [(process.communicate(timeout=200)[1], process.returncode) for process in started]
    assert 0 in [code for _, code in ended]
    for said, code in ended:
        assert code == 0 or (code == 2 and "is being built by process" in said), (code, said)
    assert not list(out.rglob(".*"))
    assert not (out / "build.lock").exists()
    pipeline("build", "parametric", "--out", tmp_path / "alone", "--workers", 0, *objects)
    assert tar_hashes(out) == tar_hashes(tmp_path / "alone")
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]


def test_a_missing_library_is_one_line(tmp_path, planted_tree) -> None:
    (planted_tree / "open3d.py").write_text("raise ImportError('not here')\n")
    commands = Commands(planted_tree)
    message = commands("build", "parametric", "--out", tmp_path / "out", "--workers", 0, *SMALL, code=2).stderr
    assert message.startswith("open3d is missing: ")
    assert message.strip().endswith("[build]'")
    assert " -m pip install " in message
    assert not (tmp_path / "out").exists()
    (planted_tree / "open3d.py").unlink()
    (planted_tree / "ray.py").write_text("raise ImportError('not here')\n")
    message = commands("build", "parametric", "--out", tmp_path / "out", "--workers", 1, *SMALL, code=2).stderr
    assert "ray is missing" in message
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_130_and_the_rerun_completes(pipeline, tmp_path) -> None:
    command = (
        "build",
        "parametric",
        "--out",
        tmp_path / "out",
        "--workers",
        0,
        "parametric.objects=200",
        "shard_size=5",
    )
    piped = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": interruptible}
    process = pipeline.start(*command, *SMALL, **piped)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("shapes/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same again" in err
    pipeline(*command, *SMALL)
    assert json.loads(pipeline("check", tmp_path / "out", "--json").stdout)["samples"] == 200
    assert sys.executable
    shutil.rmtree(tmp_path / "out")
