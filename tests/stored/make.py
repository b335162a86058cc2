"""Makes stored.tar.xz: a build, its copy in an object store, a stopped run, what it became, and its report.

    python tests/stored/make.py

They are files of an older version. tests/test_stored.py looks whether today's code still takes them for its own. Make
them again only where a file format changes on purpose, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from builders import REPOSITORY, Commands, write_off  # noqa: E402
from object_store import BUCKET, ObjectStore  # noqa: E402

ARCHIVE = HERE / "stored.tar.xz"
TINY = HERE.parent / "support/tiny_towers.py"
BUILD = (
    "shard_size=4",
    "num_points=128",
    "fps_prefix=64",
    "max_failed_fraction=0.5",
    "views.rgb12.image_size=32",
    "views.rgb12.azimuth_deg=[0, 90]",
    "views.rgb12.name=rgb2",
    "views.depth10.image_size=32",
    "views.depth10.name=depth10",
)
FIT = (
    "data.views=rgb2",
    "data.num_points=64",
    "data.shuffle=4",
    "optimizer.batch_size=2",
    "optimizer.steps=200",
    "save_every=7",
    "log_every=1",
    "points.depth=1",
    "points.width=16",
    "points.heads=2",
    "points.tokenizer_widths=[8, 8, 8]",
    "points.tokenizer_width=8",
    "points.groups=8",
    "points.group_size=8",
    "mask.image_cell=8",
    "labels.threshold=0.3",
    "tensorboard=false",
)


def write_source(folder: Path) -> None:
    """Two classes of tetrahedra: eleven for train, six for test, one without a face; and a file that ends too soon."""
    for number in range(17):
        split = "train" if number < 11 else "test"
        write_off(folder / ("small", "large")[number % 2] / split / f"t{number:02}.off", 1 + number % 2 + number / 50)
    write_off(folder / "small/train/bare.off", faces=False)
    (folder / "small/train/broken.off").write_text("OFF\n4 4 0\n0 0 0\n")


def start_fit(folder: Path, *changes: str) -> subprocess.Popen:
    """fit with the tiny towers, in `folder`, where `build` and `run` lie."""
    command = [sys.executable, TINY, "fit", "small_cross_most", "--shards", "build", "--run", "run", *FIT, *changes]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def stop_inside_an_epoch(folder: Path) -> None:
    """Ends a run by Ctrl-C; its last checkpoint is inside an epoch, which has 5 steps."""
    while True:
        process = start_fit(folder)
        while not (folder / "run/checkpoints/step-00000049").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        step = int(max((folder / "run/checkpoints").iterdir()).name.removeprefix("step-"))
        if step < 190 and step % 5:
            return
        shutil.rmtree(folder / "run")


def write_object_store(source: Path, folder: Path) -> None:
    """The objects that a build writes to S3, as files."""
    store = ObjectStore()
    try:
        commands = Commands(REPOSITORY)
        commands.environment |= store.environment
        commands("build", "meshes", "--source", source, "--out", f"s3://{BUCKET}/out", "--workers", 0, *BUILD)
        for name in re.findall("<Key>([^<]*)</Key>", store.get("?list-type=2").decode()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(store.get(name))
    finally:
        store.close()


def main() -> None:
    """Writes the archive."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "source")
        build = Commands(REPOSITORY)
        build("build", "meshes", "--source", folder / "source", "--out", folder / "build", "--workers", 0, *BUILD)
        write_object_store(folder / "source", folder / "objects")
        stop_inside_an_epoch(folder)
        shutil.copytree(folder / "run", folder / "stopped")
        process = start_fit(folder)
        assert process.wait(timeout=300) == 0
        report = [sys.executable, TINY, "report", "run", "--shards", "build", "--out", "report"]
        subprocess.run(report, cwd=folder, env=dict(os.environ, PYTHONPATH=str(REPOSITORY)), check=True, timeout=300)
        shutil.rmtree(folder / "source")
        for path in (folder / "report").iterdir():
            if path.name != "report.json":
                path.unlink()
        print(json.dumps({path.name: sum(p.stat().st_size for p in path.rglob("*")) for path in folder.iterdir()}))
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)


if __name__ == "__main__":
    main()
