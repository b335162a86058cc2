"""Commands as a person types them, and small sources to build from."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from manifests.layout import read_manifest, shapes_tar, views_tar
from manifests.samples import Sample, read_samples

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    "num_points=256",
    "fps_prefix=64",
    "views.rgb12.image_size=32",
    "views.rgb12.name=rgb12",
    "views.depth10.image_size=32",
    "views.depth10.name=depth10",
)


def interruptible() -> None:
    """For `preexec_fn`: Ctrl-C reaches the process, also where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Commands:
    """Runs `python -m pipeline ...` (or training) in a subprocess, from the repository or from a copy of it."""

    def __init__(self, tree: Path, program: str = "pipeline") -> None:
        self.tree, self.program = tree, program
        self.environment = dict(os.environ, PYTHONPATH=str(tree), OMP_NUM_THREADS="1")

    def start(self, *arguments: object, **options: object) -> subprocess.Popen:
        command = [sys.executable, "-m", self.program, *map(str, arguments)]
        return subprocess.Popen(command, cwd=self.tree, env=self.environment, **options)

    def __call__(self, *arguments: object, code: int = 0, **options: object) -> subprocess.CompletedProcess:
        process = self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        out, err = process.communicate(timeout=280)
        assert process.returncode == code, f"exit {process.returncode}, not {code}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, code, out, err)


def miniature(out: Path, *changes: str) -> Path:
    """Builds 12 parametric objects in one process."""
    Commands(REPOSITORY)("build", "parametric", "--out", out, "--workers", 0, "parametric.objects=12", *changes)
    return out


def stored(out: Path, view_set: str | None = None) -> dict[str, Sample]:
    """The samples of a build's shapes, or of one of its view sets, by key."""
    samples = {}
    for split, shards in read_manifest(str(out)).num_shards.items():
        for shard in range(shards):
            tar = (
                shapes_tar(str(out), split, shard) if view_set is None else views_tar(str(out), view_set, split, shard)
            )
            with open(tar, "rb") as file:
                samples |= {sample.key: sample for _, sample in read_samples(file)}
    return samples


def tar_hashes(out: Path) -> dict[str, str]:
    """sha256 of every tar of a build, by its path inside."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.rglob("*.tar"))
    }


def write_off(path: Path, size: float = 1.0, faces: bool = True) -> Path:
    """A tetrahedron as OFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * size
    triangles = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]] if faces else []
    lines = [f"OFF\n4 {len(triangles)} 0", *(" ".join(map(str, v)) for v in vertices)]
    lines += ["3 " + " ".join(map(str, t)) for t in triangles]
    path.write_text("\n".join(lines) + "\n")
    return path


def torchrun(processes: int, *arguments: object) -> list[str]:
    """The command that starts several processes on this machine, at a port that is free."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, *map(str, arguments)]
