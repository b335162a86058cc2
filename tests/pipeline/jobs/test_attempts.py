"""Objects made one at a time in a child process: how often, for how long, and what is kept of one that kills it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from planted import plant

PLANTED = """
import os, time
from pathlib import Path
from manifests.records import Asset
from pipeline.datasets.synthetic.generator import generate
from pipeline.formats.mesh import RawShape

NEEDS_SOURCE = False
KINDS = ("once", "always", "slow", "hangs")

def assets(root, table, options):
    for name in KINDS:
        yield Asset(name, "planted", "train", "thing")

def read(asset, root, options):
    with open(os.environ["TRIES"], "a") as file:
        file.write(asset.id + "\\n")
    times = Path(os.environ["TRIES"]).read_text().split().count(asset.id)
    if asset.id == "always" or (asset.id == "once" and times == 1):
        os._exit(7)
    if asset.id == "slow":
        time.sleep(1.0)
    return RawShape(mesh=generate("mug", 0, KINDS.index(asset.id)))
"""
SLOW_VIEWS = """
from renderers.point_depth import *
from renderers.point_depth import draw_points as _draw

def draw_points(points, preset, cameras):
    import os, time
    with open(os.environ["TRIES"]) as file:
        last = file.read().split()[-1]
    time.sleep({"slow": 1.0, "hangs": 60}.get(last, 0))
    return _draw(points, preset, cameras)
"""
PROGRAM = """
import json, sys, time
from pipeline.shards.object import BuiltObject
from pipeline.jobs.isolated_worker import CarefulMaker
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan
plan, jobs = make_plan(read_recipe("planted", {}), None, sys.argv[1])
found = {}
with CarefulMaker(plan) as maker:
    for asset in jobs[0].assets:
        start = time.monotonic()
        made = maker.build(asset)
        told = made.views["depth10"] if isinstance(made, BuiltObject) else made
        failure = None if isinstance(told, dict) else [told.stage, told.reason, told.kind]
        found[asset.id] = [isinstance(made, BuiltObject), failure, time.monotonic() - start]
print(json.dumps(found))
"""
WHOLE_SHARD = """
import json, os, sys
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import make_plan
from pipeline.jobs.worker import work
plan, jobs = make_plan(read_recipe("planted", {}), None, sys.argv[1])
_place, *reports = work(jobs[0], plan, False, None)
print(json.dumps([[p.objects, p.failures] for p in reports]))
"""


def plant_slow(tree: Path, dataset: str = PLANTED) -> None:
    plant(tree, dataset, asset_seconds=1.7)
    (tree / "renderers/slow.py").write_text(SLOW_VIEWS)
    backends = tree / "renderers/backend_table.py"
    backends.write_text(backends.read_text().replace('("renderers.point_depth"', '("renderers.slow"'))


def run(pipeline, tree: Path, program: str, out: Path) -> object:
    environment = pipeline.environment | {"PYTHONPATH": str(tree), "TRIES": str(out) + ".tries"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(out)],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_what_becomes_of_objects_that_kill_their_process(pipeline, planted_tree, tmp_path) -> None:
    plant_slow(planted_tree)
    found = run(pipeline, planted_tree, PROGRAM, tmp_path / "out")
    tries = Path(str(tmp_path / "out") + ".tries").read_text().split()
    assert {name: tries.count(name) for name in found} == {"once": 2, "always": 2, "slow": 1, "hangs": 2}
    assert found["once"][:2] == [True, None]  # a passing fault costs a second try and no object
    shape, (stage, reason, kind), _ = found["always"]
    assert (shape, stage, kind) == (False, "load", "crash")
    assert "exit code 7" in reason
    # the limit is on time without progress: reading and drawing may take as long each
    assert found["slow"][:2] == [True, None]
    # a shape whose drawing kills the child is kept, and its view set says why there are no views
    shape, (stage, reason, kind), seconds = found["hangs"]
    assert (shape, stage, kind) == (True, "render", "timeout")
    assert "asset_seconds=1.7" in reason
    assert seconds < 30


def test_each_object_of_a_shard_has_its_own_time(pipeline, planted_tree, tmp_path) -> None:
    """A shard takes longer than asset_seconds as a whole; its worker must not be ended for that."""
    reading = '    time.sleep(0.8)\n    return RawShape(mesh=generate("mug", 0, 1))\n'
    plant_slow(planted_tree, PLANTED.partition("    with open")[0].replace(', "hangs"', "") + reading)
    told = run(pipeline, planted_tree, WHOLE_SHARD, tmp_path / "out")
    assert sum(objects for objects, _ in told) == 3
