"""What reading a GLB of a million faces costs: seconds and peak memory, by our reader and by trimesh's.

    python tests/bench/bench_gltf.py [--faces 1000000] [--repeats 3]

Each reading is a process of its own; what it takes before it reads is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench_large import wavy
from machine import describe_machine

REPOSITORY = Path(__file__).resolve().parents[2]
READ = """
import io, json, resource, sys, time
from pathlib import Path
import trimesh
from pipeline.formats.mesh import read_mesh
from renderers.geometry import from_trimesh
path = Path(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
if sys.argv[1] == "ours":
    mesh = read_mesh(path, path.parent).mesh
else:
    scene = trimesh.load_scene(io.BytesIO(path.read_bytes()), file_type="glb", process=False)
    mesh = from_trimesh(scene.dump(concatenate=False))
seconds = time.perf_counter() - start
print(json.dumps([seconds, before, peak(), len(mesh.faces)]))
"""


def main() -> None:
    """Prints one line a reader."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.glb"
        path.write_bytes(wavy(options.faces).export(file_type="glb"))
        print(f"{path.stat().st_size / 1e6:.0f} MB")
        found: dict[str, list[list[float]]] = {"ours": [], "trimesh": []}
        for _ in range(options.repeats):  # in turn: the machine may be busy with other things
            for reader, runs in found.items():
                command = [sys.executable, "-c", READ, reader, str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
                runs.append(json.loads(done.stdout))
        for reader, runs in found.items():
            seconds, before, peak, faces = (median(column) for column in zip(*runs, strict=True))
            print(f"{reader}: {faces:,.0f} faces, {seconds:.3f} s, peak {peak:,.0f} MB ({before:,.0f} before)")


if __name__ == "__main__":
    main()
