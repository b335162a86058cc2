"""Several Ray nodes on this machine: code that travels, versions that are compared, nodes too small or lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import REPOSITORY, SMALL, Commands, miniature, tar_hashes
from clusters import TOKEN, Nodes, bare_environment
from planted import plant

pytestmark = pytest.mark.slow
OBJECTS = ("parametric.objects=12", "shard_size=4", *SMALL)
WHERE = """
import json, sys
from pipeline.jobs import ray_cluster
def where():
    import manifests, pipeline, renderers
    from pipeline.plan.build_recipe import RECIPES
    return [m.__file__ for m in (manifests, renderers, pipeline)], len(list(RECIPES.glob("*.toml")))
with ray_cluster.connected(0, sys.argv[1]) as ray:
    print(json.dumps([where(), ray.get(ray.remote(where).remote())]))
"""
LARGE = """
from manifests.records import Asset
from pipeline.datasets.synthetic.generator import generate
from pipeline.formats.mesh import RawShape

NEEDS_SOURCE = False

def assets(root, table, options):
    for i in range(4):
        yield Asset(f"large{i}", "large", "train", "thing")

def read(asset, root, options):
    bytearray(900_000_000)
    return RawShape(mesh=generate("mug", 0, 1))
"""
PIP = ("-m", "pip", "-q", "--disable-pip-version-check")
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    """A head without cores and two nodes of one core; none of them can import our packages."""
    folder = tmp_path_factory.mktemp("nodes")
    with Nodes(folder, bare_environment(folder / "bare")) as nodes:
        nodes.head()
        nodes.add("--num-cpus=1", "--memory=800000000")
        nodes.add("--num-cpus=1", "--memory=800000000")
        yield nodes


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, str]:
    """The bytes of the same build in one process."""
    return tar_hashes(miniature(tmp_path_factory.mktemp("here") / "out", *OBJECTS))


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what a package is built from."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("manifests", "renderers", "pipeline", "training"):
        shutil.copytree(REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, tree / name)
    return tree


def run(*command: object, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(way: str, tree: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """An interpreter and an environment in which our packages are at hand in one of the ways that there are."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | TOKEN | {"OMP_NUM_THREADS": "1"}
    python = bare_environment(folder / "environment")
    if way == "checkout":
        environment["PYTHONPATH"] = str(tree)
    elif way == "editable":
        run(sys.executable, *PIP, "--python", python, "install", *OFFLINE, "--ignore-installed", "-e", tree)
    else:
        run(sys.executable, *PIP, "wheel", *OFFLINE, "-w", folder / "dist", tree)
        packages = next((folder / "environment" / "lib").glob("python*")) / "site-packages"
        (wheel,) = (folder / "dist").glob("*.whl")
        run(sys.executable, *PIP, "install", "--no-deps", "--no-index", "--target", packages, wheel)
    return python, environment


@pytest.mark.parametrize("way", ["checkout", "editable", "wheel"])
def test_our_code_travels_to_nodes_that_have_none(nodes, here, tree, tmp_path, way: str) -> None:
    python, environment = installed(way, tree, tmp_path)
    elsewhere = tmp_path / "elsewhere"  # Ray adds the driver's folder to the workers' path
    elsewhere.mkdir()
    options = {"cwd": elsewhere, "env": environment}
    run(python, "-m", "pipeline", "build", "parametric", "--out", "out", "--ray", nodes.address, *OBJECTS, **options)
    assert tar_hashes(elsewhere / "out") == here
    (ours, recipes), (theirs, theirs_recipes) = json.loads(run(python, "-c", WHERE, nodes.address, **options))
    home = tmp_path / "environment" if way == "wheel" else tree
    assert all(Path(path).is_relative_to(home) for path in ours)
    assert all("py_modules_files" in path for path in theirs), theirs
    assert theirs_recipes == recipes > 3


def test_a_job_that_no_node_has_room_for_is_refused_at_once(nodes, planted_tree, tmp_path) -> None:
    """Ray itself would wait for ever. 900 MB an object are measured by a worker; the nodes have 800 MB each."""
    commands, out = plant(planted_tree, LARGE, "large"), tmp_path / "out"
    commands.environment |= TOKEN
    message = commands("build", "large", "--out", out, "--ray", nodes.address, *SMALL[:2], code=2).stderr
    assert "a job needs 1 core, 1," in message
    assert "of one machine; the cluster has 2 machines with cores, 0 GPUs, the largest with 762 MB" in message
    assert not out.exists()


def test_views_on_a_gpu_ask_for_one(nodes, tmp_path) -> None:
    """No node has a GPU; then one says it has, and its worker says what it lacks."""
    commands = Commands(REPOSITORY)
    commands.environment |= TOKEN
    commands("build", "parametric", "--out", tmp_path / "out", "--workers", 0, *OBJECTS, "views=[]")
    gpu = ("backend=rasterize", "device=cuda")
    command = ("views", "rgb12", "--shards", tmp_path / "out", "--ray", nodes.address, *gpu)
    message = commands(*command, code=2).stderr
    assert "a job needs 1 core, 1 GPU" in message
    number = nodes.add("--num-cpus=1", "--num-gpus=1")
    try:
        message = commands(*command, code=2).stderr
        assert "pytorch3d" in message.lower() or "PyTorch sees no GPU here" in message
    finally:
        nodes.kill(number)
    assert not (tmp_path / "out/views").exists()


def test_a_lost_node_costs_its_jobs_a_second_try(nodes, tmp_path) -> None:
    """A third node dies with its jobs as soon as a shard is done; the bytes are those of an unbroken build."""
    commands = Commands(REPOSITORY)
    commands.environment |= TOKEN
    objects = ("parametric.objects=64", "shard_size=4", "num_points=2048", "fps_prefix=1024", "views=['rgb12']")
    number = nodes.add("--num-cpus=2", "--memory=2000000000")
    out = tmp_path / "out"
    process = commands.start(
        "build", "parametric", "--out", out, "--ray", nodes.address, *objects, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("shapes/*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    done = {path: path.stat().st_mtime_ns for path in out.glob("shapes/*.json")}
    nodes.kill(number)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "again" in err
    assert 0 < len(done) < 16
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())
    commands("build", "parametric", "--out", tmp_path / "here", "--workers", 0, *objects)
    assert tar_hashes(out) == tar_hashes(tmp_path / "here")
    assert json.loads(commands("check", out, "--json").stdout)["ok"]
    commands("build", "parametric", "--out", out, "--workers", 0, *objects)  # deletes what the lost node had begun
    assert not list(out.rglob(".*.tmp"))


def test_another_ray_is_refused(tmp_path) -> None:
    """Ray compares its own version and Python's when a driver joins; its words become one line."""
    commands, out = Commands(REPOSITORY), tmp_path / "out"
    commands.environment |= TOKEN
    with Nodes(tmp_path / "nodes", before="import ray; ray.__version__ = '9.9.9'; ") as nodes:
        nodes.head("--num-cpus=1")
        message = commands("build", "parametric", "--out", out, "--ray", nodes.address, *OBJECTS, code=2).stderr
    assert f"--ray {nodes.address}: Version mismatch: The cluster was started with: Ray: 9.9.9" in message
    assert len(message.strip().splitlines()) == 1
    assert not out.exists()


def test_a_lost_head_stops_the_build(tmp_path) -> None:
    """Ray would end the driver after a minute, with an exit code and words of its own."""
    commands, out = Commands(REPOSITORY), tmp_path / "out"
    commands.environment |= TOKEN
    objects = ("parametric.objects=240", "shard_size=4", "num_points=2048", "fps_prefix=1024", "views=['rgb12']")
    with Nodes(tmp_path / "nodes") as nodes:
        nodes.head()
        nodes.add()
        command = ("build", "parametric", "--out", out, "--ray", nodes.address, *objects)
        process = commands.start(*command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not list(out.glob("shapes/*.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        nodes.kill(0)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert "the head of the cluster" in err.splitlines()[-1]
    assert "run the same again" in err.splitlines()[-1]
    found = json.loads(commands("check", out, "--json", code=1).stdout)
    assert [problem for problem in found["problems"] if "not finished" not in problem] == []
    assert found["samples"] >= 4


def test_a_node_with_another_library_is_refused(nodes, tmp_path) -> None:
    """The bytes of a shard depend on numpy, Pillow, Open3D and trimesh, so all machines must have the same."""
    python = bare_environment(tmp_path / "other")
    packages = next((tmp_path / "other" / "lib").glob("python*")) / "site-packages"
    (packages / "numpy-9.9.9.dist-info").mkdir()
    (packages / "numpy-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    number = nodes.add(python=python)
    try:
        commands = Commands(REPOSITORY)
        commands.environment |= TOKEN
        out = tmp_path / "out"
        message = commands("build", "parametric", "--out", out, "--ray", nodes.address, *OBJECTS, code=2).stderr
        import numpy

        assert f"has other versions: numpy {numpy.__version__} here, 9.9.9 there" in message
        assert len(message.strip().splitlines()) == 1
        assert not out.exists()
    finally:
        nodes.kill(number)
