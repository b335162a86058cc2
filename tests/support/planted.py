"""A dataset that is planted into a copy of the code, and the processes of a build's private Ray."""

from __future__ import annotations

import time
from pathlib import Path

from builders import Commands

from manifests.config import to_toml
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


def plant(tree: Path, dataset: str = PLANTED, name: str = "planted", **keys: object) -> Commands:
    """Adds a dataset and its recipe to a copy of the code. keys: of the recipe."""
    (tree / f"pipeline/datasets/{name}.py").write_text(dataset)
    (tree / f"manifests/datasets/{name}.toml").write_text(
        f'name = "{name}"\nclasses = ["thing"]\nprompt_names = ["thing"]\n'
    )
    recipe = {"dataset": name, "shard_size": 4, "views": ["depth10"], "num_points": 64, "fps_prefix": 16}
    (tree / f"pipeline/recipes/{name}.toml").write_text(to_toml(recipe | keys))
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
