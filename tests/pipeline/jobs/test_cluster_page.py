"""docs/cluster.md: its commands are run as they stand there, on several nodes of this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from builders import REPOSITORY, SMALL, Commands, tar_hashes
from clusters import MARK, TOKEN, processes_of

PAGE = (REPOSITORY / "docs" / "cluster.md").read_text()
OBJECTS = ("parametric.objects=12", "shard_size=4", *SMALL)
SRUN = """#!/bin/bash
tasks=1
while [[ $1 == --* ]]; do
  [[ $1 == --ntasks=* ]] && tasks=${1#--ntasks=}
  shift
done
for ((i = 0; i < tasks; i++)); do "$@" & done
trap 'kill $(jobs -p)' TERM
wait
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def shell(tmp_path) -> Iterator[dict[str, str]]:
    """The environment of a person's shell, whose processes are found and ended afterwards, and only they."""
    sessions = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    mark = f"{os.getpid()}-{os.path.basename(sessions)}"
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1", RAY_TMPDIR=sessions)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"] = "1"
    yield environment | {MARK: mark}
    while left := processes_of(mark):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    shutil.rmtree(sessions, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def bash(command: str, environment: dict[str, str], cwd: Path = REPOSITORY) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("here") / "out"
    Commands(REPOSITORY)("build", "parametric", "--out", out, "--workers", 0, *OBJECTS)
    return tar_hashes(out)


@pytest.mark.slow
def test_by_hand(shell, here, tmp_path) -> None:
    export, head, node, build = (block.strip() for block in blocks("bash"))
    words = export.replace("PUT-32-OR-MORE-RANDOM-CHARACTERS-HERE", TOKEN["RAY_AUTH_TOKEN"])
    assert words != export
    environment = shell | dict(word.split("=") for word in words.split()[1:])
    port = str(free_port())
    said = bash(head.replace("6379", port), environment)
    address = re.search(r"--address='(\S+):\d+'", said)[1]
    bash(node.replace("HEAD:6379", f"{address}:{port}"), environment)
    bash(node.replace("HEAD:6379", f"{address}:{port}"), environment)
    command = build.replace("HEAD:6379", f"{address}:{port}").replace("OUT", str(tmp_path / "out"))
    bash(f"{command} {' '.join(OBJECTS)}", environment)
    assert tar_hashes(tmp_path / "out") == here


@pytest.mark.slow
def test_slurm(shell, here, tmp_path) -> None:
    """The script as it stands; this machine stands in for all that Slurm would give."""
    (script,) = blocks("slurm")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    given = {"SLURM_JOB_ID": str(free_port() % 10000), "SLURM_NNODES": "3", "SLURM_CPUS_PER_TASK": "2"}
    script = script.replace("source .venv/bin/activate", f"source .venv/bin/activate; export PATH={tmp_path}:$PATH")
    script = script.replace("--out OUT", f"--out OUT {' '.join(OBJECTS)}")
    bash(script, shell | given, cwd=tmp_path)
    assert tar_hashes(tmp_path / "OUT") == here


def test_kuberay() -> None:
    """Only its form: there is no Kubernetes here."""
    (text,) = blocks("yaml")
    cluster = yaml.safe_load(text)
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line)
    assert cluster["spec"]["rayVersion"] == pins["ray"]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] >= 1
    images = {
        container["image"]
        for part in (cluster["spec"]["headGroupSpec"], group)
        for container in part["template"]["spec"]["containers"]
    }
    assert images == {"REGISTRY/cross-most"}
    (dockerfile,) = blocks("dockerfile")
    from renderers.system_libraries import PACKAGE_OF

    assert set(PACKAGE_OF.values()) <= set(dockerfile.split())


def test_the_page_says_what_the_code_does() -> None:
    from pipeline.jobs import cluster_machines, isolated_worker, ray_cleanup, ray_cluster, ray_jobs

    words = " ".join(PAGE.split())
    assert cluster_machines.PENDING_PER_WORKER == 2
    assert "Two jobs are handed out for each worker" in words
    assert ray_jobs.MAX_LOSSES == 4
    assert "at most four times each" in words
    assert (cluster_machines.EMPTY_SECONDS, ray_jobs.LOOK_SECONDS) == (600, 10)
    assert (cluster_machines._SPARE, cluster_machines._WORKER_MB) == (1.25, 150)
    assert "a quarter and 150 MB are added" in words
    assert (ray_jobs._SILENT_SECONDS, ray_jobs._ENDED_SECONDS) == (30, 60)
    assert "it says nothing for `asset_seconds` + 30 s, or for 5 1/2 min + 8 `asset_seconds`" in words
    assert isolated_worker.longest_silence(1) - isolated_worker.longest_silence(0) == 8
    assert isolated_worker.longest_silence(0) + ray_jobs._SILENT_SECONDS == 330
    assert "Where it does not end within a minute: exit 3" in words
    assert ray_cluster._START_SECONDS == 120
    assert "a private Ray does not start within 2 min" in words
    assert ray_cluster._CONNECT_SECONDS == 10
    assert "says nothing | exit 2 after 10 s" in words
    assert ray_jobs.CALL_SECONDS == 45
    assert "the head hangs | exit 3 after 45 s" in words
    assert ray_cleanup._LONGEST == 18
    assert "its name has more than 18 characters" in words
