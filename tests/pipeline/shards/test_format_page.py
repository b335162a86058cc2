"""docs/format.md says the truth: its reader reads a real build, its hashes and orders are those of the build."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import REPOSITORY, SMALL, stored, write_off

from manifests.samples import decode_array, decode_picture, depth_of_codes, read_samples

PAGE = (REPOSITORY / "docs/format.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("PIL", "webdataset", "manifests", "pipeline", "pydantic", "fsspec"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""
POINTS_READ = """
found = {shape["key"]: (shape["class"], points.sum().item(), None if views is None else len(views["views"]))
         for shape, points, views, _ in objects(sys.argv[1], sys.argv[2], "train")}
print(json.dumps(found))
"""
ALL_READ = """
import sys
found = {}
for shape, points, views, members in objects(sys.argv[1], "rgb12", "train"):
    view = views["views"][4]
    depth = depth_of(picture_of(members["v04.depth.png"]), view)
    u, v, z = pixels_of(points, view)
    seen = depth[v.astype(int), u.astype(int)]
    rgb = picture_of(members["v04.rgb.jpg"])
    found[shape["key"]] = [depth[np.isfinite(depth)].sum().item(), (seen - z < 0.05)[seen < 9].mean().item(),
                           np.isfinite(seen).mean().item(), rgb.shape]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def built(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("described") / "out"
    pipeline(
        *("build", "parametric", "--out", out, "--workers", 0, "parametric.objects=19", "shard_size=8"),
        *(*SMALL, "views.rgb12.image_size=64", "parametric.test_fraction=0.0"),
    )
    return out


def run(code: str, *arguments: object) -> dict:
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_reader_of_25_lines_needs_only_numpy(built) -> None:
    assert len(BLOCKS) == 2
    assert len(BLOCKS[0].splitlines()) == 25
    found = run(BARE + BLOCKS[0] + POINTS_READ, built, "depth10")
    shapes = stored(built)
    assert list(found) == list(shapes)
    for key, (class_name, total, views) in found.items():
        assert class_name == shapes[key].json["class"]
        assert total == decode_array(shapes[key].members["points.npy"]).sum().item()
        assert views == 10


def test_the_reader_joins_what_a_view_set_left_out(pipeline, tmp_path) -> None:
    write_off(tmp_path / "source/box/train/good.off")
    path = tmp_path / "source/box/train/cloud.ply"
    rows = "".join(f"{x} {y} {x * y}\n" for x in range(4) for y in range(4))
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    path.write_text(f"ply\nformat ascii 1.0\nelement vertex 16\n{properties}end_header\n{rows}")
    out = tmp_path / "out"
    changes = ("num_points=64", *SMALL[1:3], "views.rgb12.name=rgb12")
    pipeline("build", "meshes", "--source", tmp_path / "source", "--out", out, "--workers", 0, *changes)
    found = run(BARE + BLOCKS[0] + POINTS_READ, out, "rgb12")
    drawn = stored(out, "rgb12")
    assert len(found) == len(stored(out)) == 2
    assert len(drawn) == 1
    assert {key for key, (_, _, views) in found.items() if views is not None} == set(drawn)


def test_depth_and_projection_are_as_the_page_says(built) -> None:
    found = run(BLOCKS[0] + BLOCKS[1] + ALL_READ, built)
    views = stored(built, "rgb12")
    assert list(found) == list(views)
    for key, (total, not_behind, inside, shape) in found.items():
        view = views[key].json["views"][4]
        depth = depth_of_codes(decode_picture(views[key].members["v04.depth.png"]), view["near"], view["far"])
        assert total == pytest.approx(depth[np.isfinite(depth)].sum().item())
        assert not_behind > 0.95  # what is drawn lies at a point of the surface or hides it, but for steep pixels
        assert inside > 0.8
        assert shape == [64, 64, 3]


def test_hashes_and_orders_are_as_the_page_says(built) -> None:
    def digest(values: dict) -> str:
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    manifest = json.loads((built / "manifest.json").read_text())
    assert digest({"content": 2, "format": 1, "recipe": manifest["recipe"]}) == manifest["shapes_hash"]
    lines = (built / "assets.jsonl").read_bytes()
    assert hashlib.sha256(lines).hexdigest() == manifest["assets_hash"]
    rows = [json.loads(line) for line in lines.splitlines()]
    assert rows == sorted(rows)
    for name in ("rgb12", "depth10"):
        described = json.loads((built / f"views/{name}/manifest.json").read_text())
        preset = digest({k: v for k, v in described["preset"].items() if k != "title"})
        shapes = manifest["shapes_hash"]
        assert digest({"content": 2, "preset": preset, "shapes": shapes}) == described["hash"]
    keys = [key for _, key, *_ in rows]
    ordered = sorted(keys, key=lambda key: hashlib.sha256(f"{manifest['recipe']['seed']}/{key}".encode()).digest())
    for shard in range(3):
        record = json.loads((built / f"shapes/train-{shard:05d}.json").read_text())
        assert record["keys"] == ordered[8 * shard : 8 * shard + 8]


def test_sizes_and_offsets_are_as_the_page_says(built) -> None:
    for path in [*built.glob("shapes/*-*.json"), *built.glob("meshes/*-*.json"), *built.glob("views/*/*-*.json")]:
        record, data = json.loads(path.read_text()), path.with_suffix(".tar").read_bytes()
        with open(path.with_suffix(".tar"), "rb") as file:
            samples = [sample for _, sample in read_samples(file)]
        for number, sample in enumerate(samples):
            place = record["offsets"][number]
            for suffix, sizes in record["sizes"].items():
                if sizes[number] is not None:
                    assert data[place + 512 : place + 512 + sizes[number]] == sample.members[suffix]
                    place += 512 + sizes[number] + -sizes[number] % 512


def test_every_key_of_a_json_is_on_the_page(built) -> None:
    def names(values: object) -> set[str]:
        if isinstance(values, list):
            return set().union(*map(names, values[:2]))
        return set(values) | set().union(*map(names, values.values())) if isinstance(values, dict) else set()

    def of_file(path: Path, without: tuple[str, ...]) -> set[str]:
        return names({k: v for k, v in json.loads(path.read_text()).items() if k not in without})

    found = of_file(built / "manifest.json", ("recipe", "versions", "splits"))
    found |= of_file(built / "views/rgb12/manifest.json", ("preset", "versions"))
    found |= of_file(built / "views/rgb12/train-00000.json", ("versions", "sizes", "checks", "gates")) | {"checks"}
    for view_set in (None, "rgb12", "depth10"):
        sample = next(iter(stored(built, view_set).values()))
        found |= names(sample.json)
        found |= {re.sub(r"^v\d\d", "vNN", suffix) for suffix in sample.members}
    assert {name for name in found if f"`{name}`" not in PAGE} == set()
