"""A dataset that is planted into a copy of the code, and the processes of a build's private Ray."""

from __future__ import annotations

import time
from pathlib import Path

from builders import Commands

from pipeline.jobs import ray_cleanup

PLANTED = """
import os, time
from manifests.records import Asset
from pipeline.datasets.synthetic.generator import generate
from pipeline.formats.mesh import RawShape

NEEDS_SOURCE = False

def assets(root, table, options):
    for i in range(40):
        yield Asset(f"a{i}", "planted", "train", "thing")

def read(asset, root, options):
    if os.environ.get("WORKERS_SEEN"):
        with open(os.environ["WORKERS_SEEN"], "a") as file:
            file.write(f"{os.getpid()}\\n")
    time.sleep(float(os.environ.get("ASSET_TAKES", "0")))
    return RawShape(mesh=generate("mug", 0, int(asset.id[1:])))
"""


def plant(tree: Path, shard_size: int = 4) -> Commands:
    (tree / "pipeline/datasets/planted.py").write_text(PLANTED)
    (tree / "manifests/datasets/planted.toml").write_text(
        'name = "planted"\nclasses = ["thing"]\nprompt_names = ["thing"]\n'
    )
    (tree / "pipeline/recipes/planted.toml").write_text(
        f'dataset = "planted"\nshard_size = {shard_size}\nviews = ["depth10"]\nnum_points = 64\nfps_prefix = 16\n'
    )
    return Commands(tree)


def processes_of(driver: int) -> dict[int, str]:
    """pid -> command line of every process that a driver's private Ray has."""
    found = {}
    for pid, name in ray_cleanup._marked():
        if name.startswith(f"{driver}:"):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
    return found


def wait_for(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
