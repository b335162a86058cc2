"""PointNet++, RS-CNN and PointMLP: upstream outputs and gradients, what their keys mean, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clouds import CLOUDS
from golden_backbones import golden_network, with_weights
from tiny_towers import tiny
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training_runs import typed

from training.models.backbones import TOWERS
from training.networks.point_backbone import PointBackbone
from training.networks.pointmlp import GeometricAffine
from training.settings.backbone_rows import BACKBONE_SETTINGS

GOLDEN = {  # case -> the backbone and the keys that the released program has
    "pointnet2_ssg_yanx": ("pointnet2_ssg", {}),  # the golden's centres begin at index 0 in training, too
    "pointnet2_msg_yanx": ("pointnet2_msg", {}),
    "pointnet2_msg_pointcmt": ("pointnet2_pointcmt", {"family": "cuda"}),
    "rscnn_ssn_paper": ("rscnn", {"family": "cuda", "form": "paper"}),
    "rscnn_ssn_released": ("rscnn", {"family": "cuda", "form": "released"}),
    "pointmlp": ("pointmlp", {"family": "cuda"}),
    "pointmlp_elite": ("pointmlp_elite", {"family": "cuda"}),
}
LONG = ("pointnet2_msg_yanx", "pointnet2_msg_pointcmt", "pointmlp")
CASES = [pytest.param(case, marks=pytest.mark.slow) if case in LONG else case for case in GOLDEN]
LOG_SOFTMAX = ("pointnet2_ssg_yanx", "pointnet2_msg_yanx")  # what these programs return


def new_tower(backbone: str, **keys: object) -> PointBackbone:
    torch.manual_seed(0)
    return TOWERS[backbone](BACKBONE_SETTINGS[backbone](backbone=backbone, **keys), 16)


def golden_pair(golden: Path, case: str) -> tuple[PointBackbone, nn.Module, dict[str, Tensor], dict[str, float]]:
    network = golden_network(golden, case)
    backbone, keys = GOLDEN[case]
    tower = new_tower(backbone, **keys)
    return *with_weights(tower, tower.classification_head(40), network.weights), network.arrays, network.grad_norms


def logits(case: str, head: nn.Module, features: Tensor) -> Tensor:
    found = head(features)
    return found.log_softmax(dim=1) if case in LOG_SOFTMAX else found


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=tolerance * wanted.abs().max().item())


@pytest.mark.parametrize("case", CASES)
def test_at_evaluation_outputs_are_upstreams(golden: Path, case: str) -> None:
    """In float64 and in float32; `extra1` is the feature before the head."""
    tower, head, arrays, _ = golden_pair(golden, case)
    tower.eval(), head.eval()
    with torch.no_grad():
        for kind, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
            tower.to(kind), head.to(kind)
            of = str(kind).removeprefix("torch.float")
            features = tower.represent(arrays["points"].to(kind))
            close(logits(case, head, features), arrays[f"eval_logits_f{of}"], tolerance)
            if f"eval_extra1_f{of}" in arrays:
                close(features, arrays[f"eval_extra1_f{of}"], tolerance)


# the same batch in another order moves their gradients by 2e-10 to 2e-9
ROUNDED = {"pointnet2_msg_yanx": 1e-9, "pointmlp": 1e-9, "pointmlp_elite": 1e-9}


@pytest.mark.parametrize("case", CASES)
def test_in_training_outputs_and_gradients_are_upstreams(golden: Path, case: str) -> None:
    tower, head, arrays, wanted = golden_pair(golden, case)
    tower.double().train(), head.double().train()
    found = logits(case, head, tower.represent(arrays["points"].double()))
    close(found, arrays["train_logits_f64"], 1e-10)
    (found * arrays["train_probe"]).sum().backward()
    norms = {
        name: parameter.grad.norm().item()
        for name, parameter in (*tower.named_parameters(), *head.named_parameters())
        if parameter.grad is not None
    }
    assert norms.keys() == wanted.keys()
    largest, close_to = max(wanted.values()), ROUNDED.get(case, 1e-10)
    for name, norm in wanted.items():  # a bias before a batch norm has none: rounding is all that it gets
        assert norms[name] == pytest.approx(norm, rel=close_to, abs=close_to * largest), name


LEVELS = {"centres": (32, 8)}
MULTI = {
    "radii": ((0.3, 0.6), (0.8,)),
    "neighbours": ((8, 16), (8,)),
    "widths": (((16, 32), (16, 32)), ((64, 64),)),
    "last": (128,),
    **LEVELS,
}
BLOCKS = {**LEVELS, "before": (1, 1), "after": (1, 1)}
SMALL = {  # keys with which a network is small enough for clouds of 128 points and a few seconds
    "pointnet2_ssg": {"radii": ((0.4,), (0.8,)), "widths": (((16, 32),), ((32, 64),)), "last": (128,), **LEVELS},
    "pointnet2_msg": MULTI,
    "pointnet2_pointcmt": {**MULTI, "feature": 64},
    "rscnn": {"radii": (0.4, 0.8), "neighbours": (16, 8), "widths": (32, 64), "last": 128, **LEVELS},
    "pointmlp": {"neighbours": 8, "embedding": 16, "expansion": (2, 2), **BLOCKS},
    "pointmlp_elite": {"neighbours": 8, "expansion": (2, 2), **BLOCKS},
}


def shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clouds (count, 128, 3) of spheres, planes and cubes in turn, stretched and with noise, and their classes."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % len(CLOUDS)
    whole = [make(4096) for make in CLOUDS.values()]
    clouds = np.stack([rng.permutation(whole[each])[:128] * rng.uniform(0.7, 1, 3) for each in classes])
    return torch.from_numpy(clouds + rng.normal(0, 0.02, clouds.shape)).float(), torch.from_numpy(classes)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", SMALL)
def test_a_small_one_learns_shapes_from_labels(backbone: str) -> None:
    """With its authors' head, from 96 clouds of three classes; others are judged."""
    tower = new_tower(backbone, **SMALL[backbone])
    model = nn.ModuleList([tower, tower.classification_head(3)]).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    clouds, classes = shapes(96, 0)
    for _ in range(20):
        for part in torch.randperm(96).split(24):
            optimizer.zero_grad()
            cross_entropy(model[1](tower.represent(clouds[part])), classes[part]).backward()
            optimizer.step()
    clouds, classes = shapes(90, 1)
    with torch.no_grad():
        model.eval()
        right = (model[1](tower.represent(clouds)).argmax(dim=1) == classes).float().mean().item()
    assert right > 0.8, f"{right:.0%} of three classes"


def test_families_differ_in_their_centres() -> None:
    """Yan's begin anywhere in training, by the seed, and not at evaluation; CUDA's pass the origin over."""
    clouds = shapes(6, 0)[0]
    clouds[:, 100] = 0.01
    ours, yanx, cuda = (new_tower("pointnet2_ssg", family=each).train() for each in ("ours", "yanx", "cuda"))
    usual = ours.farthest(clouds, 128)
    assert (usual[:, 0] == 0).all()
    assert (usual.sort(dim=1).values == torch.arange(128)).all()
    torch.manual_seed(3)
    first = yanx.farthest(clouds, 20)
    assert len({*first[:, 0].tolist()}) > 1
    torch.manual_seed(3)
    assert torch.equal(yanx.farthest(clouds, 20), first)
    assert torch.equal(yanx.eval().farthest(clouds, 20), usual[:, :20])
    assert not (cuda.farthest(clouds, 128) == 100).any()


def test_relations_are_the_papers_or_the_released_programs() -> None:
    """There the coordinates are overwritten by offsets: zeros for the centre, the offset twice (defect B1)."""
    near = torch.rand(1, 2, 4, 3)
    offsets = near - near[:, :, :1]
    paper, released = (new_tower("rscnn", form=form)._relations(near, offsets) for form in ("paper", "released"))
    distances = offsets.square().sum(dim=3, keepdim=True).sqrt()
    torch.testing.assert_close(paper, torch.cat([distances, near[:, :, :1].repeat(1, 1, 4, 1), near, offsets], dim=3))
    torch.testing.assert_close(released, torch.cat([distances, 0 * offsets, offsets, offsets], dim=3))


def test_a_far_point_changes_every_group_of_pointmlp() -> None:
    """Its deviation is one a cloud (defect B8), and no other cloud's."""
    affine = GeometricAffine(4)
    rows, centres = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 4)
    usual = affine(rows, centres)
    wanted = (rows - centres[:, :, None])[0] / ((rows - centres[:, :, None])[0].std() + 1e-5)
    torch.testing.assert_close(usual[0], wanted)
    rows[0, 0, 0] += 100
    changed = affine(rows, centres)
    assert (changed[0, 4].abs() < usual[0, 4].abs() / 10).all()
    assert torch.equal(changed[1], usual[1])


@pytest.mark.parametrize("backbone", SMALL)
def test_any_cloud_with_enough_points_and_no_other(backbone: str) -> None:
    """Features in evaluation do not depend on the batch; a ball with fewer points than it may hold is padded."""
    tower = new_tower(backbone, **SMALL[backbone]).eval()
    clouds = shapes(3, 0)[0][:, :32]
    with torch.no_grad():
        found = tower.represent(clouds)
        torch.testing.assert_close(tower.represent(clouds[1:2]), found[1:2])
        assert found.shape == (3, tower.projection.shape[0])
    with pytest.raises(ValueError, match="31 points for 32 centres"):
        tower.represent(clouds[:, :31])
    assert BACKBONE_SETTINGS[backbone](**SMALL[backbone]).fewest_points == 32


@pytest.mark.parametrize(
    ("backbone", "keys", "said"),
    [
        ("pointnet2_ssg", {"centres": (8, 32)}, "centres=[8, 32]: those of a level are taken from the level before"),
        ("pointnet2_msg", {"centres": (8,)}, "radii has 2 entries for the 1 levels of centres"),
        ("pointnet2_msg", {"radii": ((0.1,), (0.2,))}, "level 1 has 1 / 3 / 3 radii, neighbours, widths"),
        ("rscnn", {"neighbours": (8,)}, "neighbours has 1 entries for the 2 levels of centres"),
        ("pointmlp", {"neighbours": 65, "centres": (512, 256, 64, 8)}, "neighbours=65 of a centre are taken from 64"),
        ("pointmlp", {"inner": 0.001}, "inner=0.001: of 128 channels it leaves none"),
        ("pointmlp_elite", {"after": (1, 1)}, "after has 2 entries for the 4 levels of centres"),
    ],
)
def test_keys_that_do_not_fit_each_other(backbone: str, keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        BACKBONE_SETTINGS[backbone](**keys)
    assert said in str(raised.value)


def test_a_run_takes_their_keys_and_is_asked_as_it_learned(shards: Path, tmp_path: Path) -> None:
    """Nested keys of the command line reach the checkpoint; too few points are refused before work begins."""
    keys = ["points.backbone=pointnet2_msg", "points.centres=[16, 4]", "points.radii=[[0.3, 0.6], [0.9]]"]
    keys += ["points.neighbours=[[4, 8], [4]]", "points.widths=[[[8], [8, 16]], [[16]]]", "points.last=[32]"]
    keys += ["points.family=yanx", "optimizer.steps=2", "optimizer.batch_size=4", "log_every=1", "data.num_points=32"]
    fit = ["fit", "small_crosspoint", "--shards", str(shards), "--run"]
    with tiny():
        typed(*fit, tmp_path / "run", *keys)
        first, second = (typed("evaluate", tmp_path / "run", "--shards", shards, "--json")[0] for _ in range(2))
        said = typed(*fit, tmp_path / "other", *keys, "points.centres=[33, 4]", code=2)[1]
    assert json.loads(first)["student"] == json.loads(second)["student"]
    assert said.strip().endswith("data.num_points=32 is fewer than the 33 that points.* needs")
