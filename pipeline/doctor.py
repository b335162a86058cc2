"""Finds what this machine lacks for a build, with a command for each: libraries, limits, space, a Ray that starts."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from manifests.errors import Refused
from manifests.install import install_command
from manifests.plain_text import number_of
from manifests.process_info import environment
from pipeline.jobs import ray_cluster
from renderers.system_libraries import PACKAGE_OF, missing_libraries

ROLES = {
    "build": {
        "numpy": "arrays",
        "PIL": "pictures",
        "fsspec": "s3 and gs",
        "pydantic": "recipes",
        "rich": "progress",
        "webdataset": "writing tars",
        "trimesh": "writing meshes",
        "DracoPy": "glb files with Draco",
        "meshopt": "glb files with meshopt",
        "jinja2": "pages of inspect",
        "open3d": "mesh views",
        "h5py": "h5 datasets",
        "ray": "--workers N",
    },
    "export": {"pyarrow": "export --format hf"},
    "train": {
        "torch": "training",
        "torchvision": "open_clip needs it",
        "open_clip": "CLIP towers",
        "timm": "open_clip needs it",
        "safetensors": "checkpoints",
    },
    "dev": {"pytest": "tests", "xdist": "tests", "ruff": "style", "hypothesis": "tests"},
}
PYTHON = (3, 11)
SHM_MB = 100  # Ray keeps its object store there: 80 MB
OPEN_FILES = 4096
DISK_GB = 10
_RAY_SECONDS = 300  # its parts have limits of their own, which say more
_START_RAY = f"import {ray_cluster.__name__} as cluster; raise SystemExit(cluster.start_and_say())"
State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. state: `missing` things stop a build, `note` things may matter.

    command: what mends it, or empty.
    """

    name: str
    state: State
    detail: str
    command: str = ""


def examine(start_ray: bool = True) -> Iterator[Finding]:
    """Everything in turn. start_ray: really starts it, which takes seconds."""
    version = ".".join(map(str, sys.version_info[:3]))
    newer = sys.version_info[:2] >= PYTHON
    yield Finding("python", "ok" if newer else "missing", version, "" if newer else "make PYTHON=python3.12")
    yield from _system_libraries()
    for role, libraries in ROLES.items():
        yield from (_library(name, role, purpose) for name, purpose in libraries.items())
    yield from _limits()
    yield from _space(Path.cwd(), Path(tempfile.gettempdir()))
    if find_spec("ray") is not None and start_ray:
        yield _ray()


def _system_libraries() -> Iterator[Finding]:
    if sys.platform != "linux":
        return
    lost = missing_libraries()
    packages = " ".join(PACKAGE_OF[name] for name in lost)
    if lost:
        yield Finding("libraries", "missing", f"Open3D needs {', '.join(lost)}", f"sudo apt-get install -y {packages}")
    else:
        yield Finding("libraries", "ok", "what Open3D is linked to")


def _library(name: str, role: str, purpose: str) -> Finding:
    install = install_command(role)
    what = purpose if role == "build" else f"{purpose} (role {role})"
    if find_spec(name) is None:
        return Finding(name, "missing" if role == "build" else "note", what, install)
    if name == "open3d":
        try:
            import renderers.raycast  # noqa: F401 - loading it is the test
        except Refused as error:
            return Finding(name, "missing", str(error), install)
    return Finding(name, "ok", what)


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= OPEN_FILES
    wanted = 65535 if hard == resource.RLIM_INFINITY else min(65535, hard)
    yield Finding(
        "open files",
        "ok" if enough else "note",
        f"{soft:,} at once; Ray with many workers wants {OPEN_FILES:,}",
        "" if enough else f"ulimit -n {wanted}",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free_gb = _available_bytes() / 1e9
    fits = not free_gb or free_gb >= cores
    detail = f"{number_of(cores, 'core')}, {free_gb:.0f} GB of memory free; a worker takes 0.5 to 1.5 GB"
    yield Finding("workers", "ok" if fits else "note", detail, "" if fits else f"--workers {max(1, int(free_gb))}")


def _available_bytes() -> int:
    """Memory that programs may still take (proc(5), MemAvailable), 0 where /proc does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def _space(here: Path, temporary: Path) -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if sys.platform == "linux":
        free = shutil.disk_usage(shm).free / 1e6 if shm.is_dir() else 0
        state: State = "ok" if free >= SHM_MB else "missing"
        command = "" if state == "ok" else "docker run --shm-size=1g ..., or mount -o remount,size=1g /dev/shm"
        yield Finding("/dev/shm", state, f"{free:,.0f} MB free; Ray needs {SHM_MB}", command)
    for name, folder in (("this folder", here), ("temporary", temporary)):
        free = shutil.disk_usage(folder).free / 1e9
        enough = free >= DISK_GB
        command = "" if enough else "give --out a larger disk" if name == "this folder" else "export TMPDIR=LARGER_DISK"
        yield Finding(name, "ok" if enough else "note", f"{free:,.0f} GB free in {folder}", command)


def _ray() -> Finding:
    """Starts a private Ray with one worker in a process of its own: what it prints and leaves goes with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START_RAY],
            capture_output=True,
            text=True,
            timeout=_RAY_SECONDS,
            check=False,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        return Finding("ray starts", "missing", f"no worker after {_RAY_SECONDS} s", "--workers 0 works without Ray")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1][:200]
        return Finding("ray starts", "missing", last, "--workers 0 works without Ray")
    return Finding("ray starts", "ok", "a private one, with one worker")
