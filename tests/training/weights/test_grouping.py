"""Sub-clouds are held from pre-training to evaluation: weights of ours that differ are refused, all else is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_towers import config_in
from torch.nn.functional import normalize
from training_runs import ONE_STEP, typed
from weight_files import as_point_bert, bare_points, save_ulip

from training.models import clip
from training.networks.point_bert import group_points
from training.weights.formats import below
from training.weights.grouping import Grouping

STEP = "checkpoints/step-00000001"
FEW = (*ONE_STEP, "mask.image_cell=8")


@pytest.fixture(scope="module", autouse=True)
def _tiny(tmp_path_factory) -> Iterator[None]:
    """The smallest CLIP there is stands for `cross_most_small`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(clip, "SMALL_CONFIG", config_in(tmp_path_factory.mktemp("clip")))
        yield


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    """One step of pre-training with the small recipe's 24 groups of 12, in clouds of 64 points; and its one file."""
    folder = tmp_path_factory.mktemp("grouping") / "run"
    typed("fit", "small_pretrain", "--shards", shards, "--run", folder, *ONE_STEP)
    typed("weights", folder, "--out", folder.parent / "exported.safetensors")
    return folder


def go_on(shards: Path, run: Path, *changes: object, code: int = 0) -> list[str]:
    """The lines that speak of sub-clouds when a training begins with these changes."""
    said = typed("fit", "small_cross_most", "--shards", shards, "--run", run, *FEW, *changes, code=code)[1]
    return [line for line in said.splitlines() if " groups of " in line or "distinct" in line]


@pytest.mark.parametrize("place", ["run", f"run/{STEP}", f"run/{STEP}/model.safetensors", "exported.safetensors"])
def test_weights_of_ours_that_are_grouped_otherwise_are_refused(run, shards, tmp_path, place: str) -> None:
    source, key = run.parent / place, "init.all" if "/" in place else "init.points"
    given = (f"{key}={source}", "init.other_space=keep")
    (line,) = go_on(shards, tmp_path / "run", *given, "points.groups=16", "points.group_size=18", code=2)
    kind = "(a checkpoint of this program)"
    assert line == (
        f"{key}={source} {kind} learned from 24 groups of 12 points, this recipe has 16 of 18: points.groups=24 "
        "points.group_size=12 goes on with its own, init.other_neighbours=keep with these"
    )
    assert not (tmp_path / "run").exists()


def test_the_same_groups_and_pictures_alone_are_no_matter(run, shards, tmp_path) -> None:
    exported = run.parent / "exported.safetensors"
    assert go_on(shards, tmp_path / "same", f"init.all={exported}", "points.groups=24", "points.group_size=12") == []
    assert go_on(shards, tmp_path / "run", f"init.image={run}", "points.groups=16") == []


def test_another_number_of_points_is_told_once(run, shards, tmp_path) -> None:
    """In training and in evaluation; the run then goes on, and says no more where nothing differs."""
    (line,) = go_on(shards, tmp_path / "run", f"init.all={run}", "data.num_points=256")
    assert line == (
        f"init.all={run} (a checkpoint of this program) learned from 24 groups of 12 in clouds of 64 points, this "
        "recipe has 24 groups of 12 in clouds of 256 points: a group reaches about 0.5 times as far"
    )
    evaluate = ("evaluate", tmp_path / "run", "--shards", shards)
    assert "learned" not in typed(*evaluate)[1]
    said = typed(*evaluate, "data.num_points=64")[1]
    assert said.count("clouds of 256 points: a group reaches about 2 times as far") == said.count("learned from") == 1


def test_clouds_that_are_filled_up_are_told(run, shards, tmp_path) -> None:
    """The build has 256 points of each object."""
    (line,) = go_on(shards, tmp_path / "run", "data.num_points=1024")
    words = (
        "clouds of 256 points are filled up to data.num_points=1024 by repeats: of the points of a group, about 1 in "
    )
    assert words + "4 is distinct; data.num_points=256 takes them as they are" in line
    assert "distinct" in typed("evaluate", tmp_path / "run", "--shards", shards)[1]
    assert "distinct" not in typed("evaluate", run, "--shards", shards, "data.num_points=256")[1]


def test_a_file_that_does_not_say_is_told(run, shards, tmp_path) -> None:
    bare = shutil.copy(run / STEP / "model.safetensors", tmp_path / "bare.safetensors")
    (line,) = go_on(shards, tmp_path / "run", f"init.all={bare}", "points.groups=16")
    assert "does not say from which groups of points it learned; this recipe has 16 groups of 12 in clouds of" in line


def test_weights_of_others_are_taken_with_a_warning(run, shards, tmp_path) -> None:
    tower = below(load_file(run / STEP / "model.safetensors"), "points.")
    bert = tmp_path / "Point-BERT.pth"
    torch.save({"base_model": as_point_bert(tower)}, bert)
    ulip = {f"point_encoder.{name}": value for name, value in bare_points(tower).items()}
    ulip |= {"pc_projection": tower["projection"]}
    save_ulip(tmp_path / "ulip.pt", ulip)
    for path, own, keys in (
        (bert, "64 groups of 32 in clouds of 1,024", "points.groups=64 points.group_size=32"),
        (tmp_path / "ulip.pt", "512 groups of 32 in clouds of 8,192", "points.groups=512 points.group_size=32"),
    ):
        given = (f"init.points={path}", "init.other_space=keep", f"init.image={run}")
        (line,) = go_on(shards, tmp_path / path.stem, *given)
        assert f"learned from {own} points, this recipe has 24 groups of 12 in clouds of 64 points: a group" in line
        assert line.endswith(f"its own are {keys}")
        assert f"points learned from {own} points" in typed("weights", path)[0]


def test_the_command_says_the_grouping_of_ours(run) -> None:
    expected = {"groups": 24, "size": 12, "points": 64}
    for path in (run, run.parent / "exported.safetensors"):
        assert json.loads(typed("weights", path, "--json")[0])["grouping"] == expected


def test_a_header_may_say_anything(run, tmp_path) -> None:
    """A file may come from somebody else: what is no recipe is one line, or a file that does not say."""
    tensors = load_file(run.parent / "exported.safetensors")
    for header in ('{"points": 3, "data": {}}', '{"points": {"groups": "x"}}', '{"points": {"groups": -1}}'):
        save_file(tensors, tmp_path / "odd.safetensors", {"recipe": header, "run": "{}"})
        assert json.loads(typed("weights", tmp_path / "odd.safetensors", "--json")[0])["grouping"] is None
    save_file(tensors, tmp_path / "odd.safetensors", {"recipe": "[" * 9, "run": "{}"})
    said = typed("weights", tmp_path / "odd.safetensors", code=2)[1]
    assert said.count("\n") == 0
    assert "the recipe in its header is damaged" in said


@pytest.mark.parametrize(("then", "now"), [((64, 32, 8192), (64, 32, 2048)), ((64, 32, 8192), (32, 64, 8192))])
def test_how_far_a_group_reaches(then: tuple[int, int, int], now: tuple[int, int, int]) -> None:
    """The root of the shares agrees with the groups of points on a sphere."""
    points = normalize(torch.randn(4, 8192, 3, generator=torch.Generator().manual_seed(0)), dim=2)

    def reach(groups: int, size: int, count: int) -> float:
        return float(group_points(points[:, :count].contiguous(), groups, size)[1].norm(dim=3).amax(dim=2).mean())

    assert Grouping(*now).radius_over(Grouping(*then)) == pytest.approx(reach(*now) / reach(*then), rel=0.1)
