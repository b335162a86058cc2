"""What a mesh of a million faces costs a worker: seconds and peak memory, file format by file format.

    python tests/bench/bench_large.py [--faces 1000000]

Each file is built alone in a process of its own (`--workers 0`), with the recipe's 12 RGB and 10 depth views.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import trimesh
from machine import describe_machine


def wavy(num_faces: int) -> trimesh.Trimesh:
    """A wavy square of about so many triangles."""
    side = int((num_faces / 2) ** 0.5) + 1
    x, z = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    vertices = np.stack([x, 0.3 * np.sin(9 * x) * np.cos(7 * z), z], axis=-1).reshape(-1, 3)
    corner = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    one = np.stack([corner, corner + 1, corner + side], axis=1)
    two = np.stack([corner + 1, corner + side + 1, corner + side], axis=1)
    return trimesh.Trimesh(vertices, np.concatenate([one, two]), process=False)


def main() -> None:
    """Prints one line a format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faces", type=int, default=1_000_000)
    options = parser.parse_args()
    print(describe_machine())
    mesh = wavy(options.faces)
    folder = Path(tempfile.mkdtemp(prefix="bench-large-"))
    try:
        for suffix in ("ply", "glb", "stl", "obj", "off"):
            source, out = folder / suffix, folder / f"out-{suffix}"
            source.mkdir()
            data = mesh.export(file_type=suffix)
            (source / f"large.{suffix}").write_bytes(data.encode() if isinstance(data, str) else data)
            start = time.perf_counter()
            command = [sys.executable, "-m", "pipeline", "build", "meshes", "--source", str(source), "--out", str(out)]
            subprocess.run([*command, "--workers", "0"], check=True, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            peak = json.loads((out / "manifest.json").read_text())["max_rss_mb"]
            print(f"{suffix}: {len(mesh.faces):,} faces, {seconds:.1f} s with start, peak {peak:,.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
