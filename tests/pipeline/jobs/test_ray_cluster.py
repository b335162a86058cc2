"""A running Ray cluster: its own processes, its own token, and code that travels to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import REPOSITORY, SMALL, Commands, tar_hashes

RAY = Path(sys.executable).parent / "ray"
OBJECTS = ("parametric.objects=12", "shard_size=4", *SMALL)


def test_an_address_where_nobody_listens_is_refused_at_once(pipeline, tmp_path) -> None:
    command = ("build", "parametric", "--out", tmp_path / "out", *OBJECTS)
    for address in ("127.0.0.1:9", "nonsense"):
        message = pipeline(*command, "--ray", address, code=2).stderr
        assert f"--ray {address}: no Ray head answers there" in message
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_cluster_builds_the_same_bytes(tmp_path) -> None:
    """`ray start` runs in a folder from which our packages cannot be imported: they must travel with the job."""
    pipeline = Commands(REPOSITORY)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2, "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | token
    start = [RAY, "start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    said = tmp_path / "ray.log"
    with open(said, "w") as file:  # --block: ending this process ends its cluster, and no other on the machine
        head = subprocess.Popen(start, cwd=tmp_path, env=environment, stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (found := re.search(r"--address='(\S+)'", said.read_text())) and time.monotonic() < deadline:
        time.sleep(0.2)
    address = found[1]
    try:
        pipeline.environment |= token
        pipeline("build", "parametric", "--out", tmp_path / "cluster", "--ray", address, *OBJECTS)
        pipeline("build", "parametric", "--out", tmp_path / "here", "--workers", 0, *OBJECTS)
        assert tar_hashes(tmp_path / "cluster") == tar_hashes(tmp_path / "here")
        pipeline.environment["RAY_AUTH_TOKEN"] = "f" * 32
        message = pipeline("build", "parametric", "--out", tmp_path / "no", "--ray", address, *OBJECTS, code=2).stderr
        assert "RAY_AUTH_TOKEN" in message
        assert not (tmp_path / "no").exists()
    finally:
        head.terminate()
        try:
            head.wait(timeout=30)
        finally:
            if head.poll() is None:
                os.killpg(head.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_build_in_an_object_store_is_the_same_bytes(tmp_path) -> None:
    """A real S3 protocol server in a process of its own; shards are built there, checked there and redrawn there."""
    import json
    import socket

    import boto3
    import s3fs

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    store = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        options = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        boto3.client("s3", **options, **keys).create_bucket(Bucket="bucket")
        fs = s3fs.S3FileSystem(key="x", secret="x", client_kwargs=options)
        pipeline = Commands(REPOSITORY)
        pipeline.environment |= store
        out = "s3://bucket/shards"
        pipeline("build", "parametric", "--out", out, "--workers", 2, *OBJECTS)
        pipeline("build", "parametric", "--out", tmp_path / "here", "--workers", 0, *OBJECTS)
        local = tar_hashes(tmp_path / "here")
        for name in local:
            assert fs.cat_file(f"bucket/shards/{name}") == (tmp_path / "here" / name).read_bytes()
        assert json.loads(pipeline("check", out, "--json").stdout)["ok"]
        fs.rm("bucket/shards/views/rgb12", recursive=True)
        pipeline("views", "rgb12", "--shards", out, "--workers", 0, "image_size=32", "name=rgb12")
        assert json.loads(pipeline("check", out, "--json", "--against", tmp_path / "here").stdout)["ok"]
        training = Commands(REPOSITORY, "training")
        training.environment |= store
        training(
            "fit",
            "small_cross_most",
            "--shards",
            out,
            "--run",
            tmp_path / "run",
            "data.num_points=64",
            "optimizer.batch_size=4",
            "optimizer.steps=2",
        )
    finally:
        server.kill()
        server.wait()
