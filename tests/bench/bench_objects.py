"""What one object costs: processor seconds and bytes, of real models and of real frames.

    python tests/bench/bench_objects.py [--shared ../shared]

ShapeNet v2's sample models by their recipe; the sample meshes (GLB, OBJ, PLY, STL, OFF) with twelve RGB views, in the
place of Objaverse; a miniature CO3D release with 20 real frames of 1066 x 1896 a sequence and small clouds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine, one_core

one_core()
REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(REPOSITORY / "tests/support"))

import numpy as np  # noqa: E402
from co3d_release import write_category  # noqa: E402

from manifests.config import Value  # noqa: E402
from manifests.records import Failure  # noqa: E402
from pipeline.jobs.build_forecast import tar_bytes  # noqa: E402
from pipeline.plan.build_recipe import read_recipe  # noqa: E402
from pipeline.plan.plan import make_plan  # noqa: E402
from pipeline.shards.object import keep_freed_memory, make_object  # noqa: E402

TIMES = 3


def cost(name: str, recipe: str, source: Path, changes: dict[str, Value]) -> None:
    """Prints the mean, median and largest of the objects' best times, and their mean bytes."""
    plan, jobs = make_plan(read_recipe(recipe, changes), str(source), "/nowhere")
    rows = []
    for number, asset in enumerate(asset for job in jobs for asset in job.assets):
        best = float("inf")
        for _ in range(TIMES + (number == 0)):  # the first also loads the libraries
            start = time.process_time()
            built = make_object(asset, plan)
            best = min(best, time.process_time() - start)
        if not isinstance(built, Failure):
            rows.append((best, tar_bytes(built)))
    seconds, sizes = np.array(rows).T
    spread = f"mean {seconds.mean():.3f} s, median {np.median(seconds):.3f}, largest {seconds.max():.3f}"
    print(f"{name}: {len(rows)} objects, {spread}; {sizes.mean() / 1e6:.2f} MB", flush=True)


def with_real_frames(folder: Path, pictures: list[Path]) -> Path:
    """A CO3D release of five sequences whose pictures are those of a real one."""
    names = [f"{10 + n}_{n}_{n}" for n in range(5)]
    write_category(folder, "chair", 2, names, num_frames=20, size=(1066, 1896))
    for number, path in enumerate(sorted(folder.rglob("images/*.jpg"))):
        path.write_bytes(pictures[number % len(pictures)].read_bytes())
    return folder


def main() -> None:
    """Prints a line a dataset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("CROSS_MOST_SHARED", "../shared")))
    samples = parser.parse_args().shared / "samples"
    print(describe_machine())
    keep_freed_memory()
    cost("ShapeNet v2, rgb10 and depth10", "shapenet_v2", samples / "ShapeNetCore.v2", {"allow_partial": True})
    cost("sample meshes, rgb12", "meshes", samples / "meshes/trimesh", {"views": {"rgb12": {}}})
    scratch = Path(tempfile.mkdtemp(prefix="bench-objects-"))
    try:
        release = with_real_frames(scratch, sorted((samples / "CO3D_frames_only/apple").glob("*.jpg")))
        cost("CO3D v2, frames20 and depth10", "co3d_v2", release, {"allow_partial": True})
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
