"""Files of point networks as their authors save them, through `init.points`; and neighbours that no weight shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_backbones import filled
from tiny_towers import tiny
from torch import Tensor
from training_runs import ONE_STEP, typed

from manifests.config import parse_changes
from manifests.errors import Refused
from training.models.backbones import TOWERS
from training.settings.fit_recipe import read_recipe
from training.weights.pretrained import Towers, initial_towers

FILES = {  # backbone -> the golden list of names, and how its authors wrap them
    "pointnet": ("pointnet_dgcnnrepo", "module.", None),
    "pointnet_tnet": ("pointnet_yanx", "", "model_state_dict"),
    "dgcnn": ("dgcnn_k20", "module.", None),
    "pointnet2_ssg": ("pointnet2_ssg_yanx", "", "model_state_dict"),
    "pointnet2_msg": ("pointnet2_msg_yanx", "", "model_state_dict"),
    "pointnet2_pointcmt": ("pointnet2_msg_pointcmt", "module.", "model_state"),
    "rscnn": ("rscnn_ssn_released", "", None),
    "pointmlp": ("pointmlp", "module.", "net"),
    "pointmlp_elite": ("pointmlp_elite", "module.", "net"),
}
OURS = sorted(FILES.keys() & TOWERS.keys())
UNMASKED = ("weights.mpm=0", "weights.lg_align=0")
STEP = (*ONE_STEP[:-2], "tensorboard=false", *UNMASKED, "mask.image_cell=8")
SMALL = ("points.backbone=dgcnn", "points.k=6", "points.widths=[8,8,8,8]", "points.emb_dims=8")


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> Iterator[None]:
    with tiny():
        yield


def upstream(golden: Path, folder: Path, backbone: str, **changed: Tensor) -> tuple[Path, dict[str, Tensor]]:
    """A file of the authors' names, with weights by the goldens' rule; and its tensors."""
    case, prefix, place = FILES[backbone]
    shapes = json.loads((golden / "method/backbones" / f"{case}.keys.json").read_text())
    state = {name: filled(name, shapes[name], j, 3) for j, name in enumerate(sorted(shapes))} | changed
    wrapped: dict[str, Any] = {prefix + name: value for name, value in state.items()}
    path = folder / f"{backbone}.t7"
    torch.save({place: wrapped, "epoch": 3} if place else wrapped, path)
    return path, state


def towers(*changes: str) -> Towers:
    return initial_towers(read_recipe("small_cross_most", parse_changes([*UNMASKED, *changes])))


@pytest.mark.parametrize("backbone", OURS)
def test_a_file_of_its_authors_fills_a_backbone(golden, tmp_path, backbone) -> None:
    """Its head is left over, and the projection, which no such file has, stays random."""
    path, state = upstream(golden, tmp_path, backbone)
    found = towers(f"points.backbone={backbone}", f"init.points={path}", "data.num_points=2048")
    (loaded,) = found.loaded
    own = found.points.state_dict()
    assert set(loaded.loaded) == {f"points.{name}" for name in own} - {"points.projection"}
    assert loaded.missing == ("points.projection",)
    assert any("not in it, left at random: points.projection" in line for line in loaded.lines())
    head = found.points.classification_head(40).state_dict()
    wrapper = "model." if all(name.startswith("model.") for name in state) else ""  # taken off as that of a class
    assert set(loaded.left_over) == {name.removeprefix(wrapper) for name in head}
    for name in own.keys() - {"projection"}:
        assert torch.equal(own[name], state[name]), name
    about = json.loads(typed("weights", path, "--json")[0])
    assert (about["kind"], about["backbone"], about["missing"]) == ("point_network", backbone, [])
    assert f"points.backbone={backbone} (init.points)" in typed("weights", path)[0]


def test_a_tensor_with_two_names_is_read_by_either(golden, tmp_path) -> None:
    path, state = upstream(golden, tmp_path, "dgcnn")
    torch.save({name: value for name, value in state.items() if ".1." not in name}, path)
    found = towers("points.backbone=dgcnn", f"init.points={path}")
    assert torch.equal(found.points.state_dict()["conv2.1.weight"], state["bn2.weight"])
    assert set(found.loaded[0].left_over) == set(found.points.classification_head(40).state_dict())


def test_a_file_that_does_not_fit_is_one_line(golden, tmp_path) -> None:
    path, state = upstream(golden, tmp_path, "dgcnn")
    what = f"init.points={path} (a point network of its authors)"

    def refused(*changes: str) -> str:
        with pytest.raises(Refused) as error:
            towers(f"init.points={path}", *changes)
        return str(error.value)

    words = f"{what} is of points.backbone=dgcnn, this recipe has points.backbone="
    assert refused("points.backbone=pointnet") == words + "pointnet"
    assert refused() == words + "point_bert"
    said = refused("points.backbone=dgcnn", "points.emb_dims=16")
    assert said == f"{what}: points.conv5.0.weight is (1024, 512, 1), this recipe's (16, 512, 1)"
    torch.save({name: value for name, value in state.items() if not name.startswith("conv3.0")}, path)
    said = refused("points.backbone=dgcnn")
    assert said == f"{what}: holds no points.conv3.0.weight, which this recipe's tower has"
    assert "missing: 1: points.conv3.0.weight" in typed("weights", path)[0]
    torch.save(state | {"conv1.0.weight": state["conv1.0.weight"] * torch.nan}, path)
    assert (
        refused("points.backbone=dgcnn") == f"init.points={path}: points.conv1.0.weight is not finite (NaN or infinity)"
    )
    bert = tmp_path / "bert.pth"
    torch.save({"reduce_dim.weight": torch.ones(1), "encoder.first_conv.0.weight": torch.ones(1)}, bert)
    with pytest.raises(Refused, match=r"\(Point-BERT\) is of points.backbone=point_bert, this recipe .*=dgcnn$"):
        towers("points.backbone=dgcnn", f"init.points={bert}")


@pytest.mark.slow
def test_such_a_file_begins_a_run_and_is_judged_without_one(golden, shards, tmp_path) -> None:
    path, _ = upstream(golden, tmp_path, "dgcnn")
    typed("fit", "small_cross_most", "--shards", shards, "--run", tmp_path / "start", *STEP, *SMALL)
    words = ("--recipe", "small_cross_most", "data.num_points=64", "points.backbone=dgcnn")
    pictures = f"init.image={tmp_path / 'start'}"
    said = typed("evaluate", path, "--shards", shards, *words, "points.k=5", pictures)[1]
    assert "does not say from which neighbours of a point it learned; this recipe has points.k=5" in said
    assert "points are not judged: no weights give their tower and its projection" in said
    start = f"init.all={tmp_path / 'start'}"
    known = json.loads(typed("evaluate", "--shards", shards, start, *words, *SMALL[1:], "--json")[0])
    run = json.loads(typed("evaluate", tmp_path / "start", "--shards", shards, "--json")[0])
    assert known["student"] == run["student"]


def test_other_neighbours_are_refused_unless_asked_for(shards, tmp_path) -> None:
    """At evaluation by a flag, at the beginning of a run by a key."""
    run = tmp_path / "run"
    typed("fit", "small_cross_most", "--shards", shards, "--run", run, *STEP, *SMALL)
    checkpoint = run / "checkpoints/step-00000001"
    judge = ("evaluate", run, "--shards", shards, "--json")
    other = "points.k=12"
    said = typed(*judge, other, code=2)[1]
    assert said == f"points.k=12: {checkpoint} learned with points.k=6; --other-neighbours judges it with others"
    assert f"points.k=12: {checkpoint} learned with 6" in typed(*judge, other, "--other-neighbours")[1]
    said = typed(*judge, "points.emb_dims=16", "--other-neighbours", code=2)[1]
    assert said == f"points.emb_dims=16: {checkpoint} has points.emb_dims=8, on which its weights depend"
    embed = ("embed", run, "--shards", shards, "--out")
    assert "--other-neighbours" in typed(*embed, tmp_path / "a.npz", other, code=2)[1]
    typed(*embed, tmp_path / "a.npz", "points.k=6")
    typed(*embed, tmp_path / "b.npz", other, "--other-neighbours")
    first, second = (np.load(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert not np.allclose(first["points"], second["points"])
    probe = ("probe", run, "--shards", shards, "--json", "--without-random", other)
    assert "--other-neighbours" in typed(*probe, code=2)[1]
    assert json.loads(typed(*probe, "--other-neighbours")[0])["k"] == 12
    begin = ("fit", "small_cross_most", "--shards", shards, *STEP, *SMALL, other, f"init.points={run}")
    said = typed(*begin, "--run", tmp_path / "next", code=2)[1]
    words = f"init.points={run} has points.k=6, this recipe 12"
    assert said == f"{words}: init.other_neighbours=keep takes the weights with it"
    assert words in typed(*begin, "--run", tmp_path / "next", "init.other_neighbours=keep")[1]
