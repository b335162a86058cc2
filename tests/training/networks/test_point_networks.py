"""PointNet, its form with T-nets and DGCNN: upstream outputs and gradients, exact neighbours, what they refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_backbones import filled, golden_network, with_weights
from torch import Tensor, nn

from manifests.errors import Stopped
from training.models.backbones import point_tower
from training.networks import nearest
from training.networks.dgcnn import Dgcnn, EdgeConv
from training.networks.global_batch_norm import GlobalBatchNorm1d, GlobalBatchNorm2d, with_global_norms
from training.networks.nearest import nearest_neighbours, over_neighbours
from training.networks.point_backbone import PointBackbone
from training.settings.backbone_rows import BACKBONE_SETTINGS
from training.settings.point_networks import DgcnnSettings

GOLDEN = {"pointnet_dgcnnrepo": "pointnet", "pointnet_yanx": "pointnet_tnet", "dgcnn_k20": "dgcnn"}


def new_tower(backbone: str, **keys: object) -> PointBackbone:
    torch.manual_seed(0)
    return point_tower(BACKBONE_SETTINGS[backbone](backbone=backbone, **keys), 16)


def once(tower: PointBackbone, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Upstream weights without the first of two names of one tensor."""
    return {name: value for name, value in weights.items() if not name.startswith(tuple(tower.twice))}


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=tolerance * wanted.abs().max().item())


def logits(case: str, head: nn.Module, features: Tensor) -> Tensor:
    found = head(features)
    return found.log_softmax(dim=1) if case == "pointnet_yanx" else found  # what that program returns


@pytest.mark.parametrize("case", GOLDEN)
def test_at_evaluation_outputs_are_upstreams(golden: Path, case: str) -> None:
    network, tower = golden_network(golden, case), new_tower(GOLDEN[case])
    _, head = with_weights(tower, tower.classification_head(40), once(tower, network.weights))
    tower.eval(), head.eval()
    with torch.no_grad():
        for kind, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
            tower.to(kind), head.to(kind)
            of = str(kind).removeprefix("torch.float")
            features = tower.represent(network.arrays["points"].to(kind))
            close(logits(case, head, features), network.arrays[f"eval_logits_f{of}"], tolerance)
            if f"eval_linear1_input_f{of}" in network.arrays:
                close(features, network.arrays[f"eval_linear1_input_f{of}"], tolerance)


@pytest.mark.parametrize("case", GOLDEN)
def test_in_training_outputs_and_gradients_are_upstreams(golden: Path, case: str) -> None:
    network, tower = golden_network(golden, case), new_tower(GOLDEN[case])
    _, head = with_weights(tower, tower.classification_head(40), once(tower, network.weights))
    tower.double().train(), head.double().train()
    found = logits(case, head, tower.represent(network.arrays["points"].double()))
    close(found, network.arrays["train_logits_f64"], 1e-10)
    (found * network.arrays["train_probe"]).sum().backward()
    upstream = {new: old for old, new in tower.twice.items()}
    largest = max(network.grad_norms.values())
    compared = 0
    for name, parameter in (*tower.named_parameters(), *head.named_parameters()):
        if parameter.grad is not None:  # the projection took no part
            old = next((upstream[new] + name.removeprefix(new) for new in upstream if name.startswith(new)), name)
            norm = parameter.grad.norm().item()  # a bias before a batch norm has none: rounding is all that it gets
            assert norm == pytest.approx(network.grad_norms[old], rel=1e-10, abs=1e-10 * largest), name
            compared += 1
    assert compared == len(network.grad_norms)


def test_the_second_transform_is_upstreams_and_held_near_orthogonal(golden: Path) -> None:
    network, tower = golden_network(golden, "pointnet_yanx"), new_tower("pointnet_tnet")
    with_weights(tower, tower.classification_head(40), network.weights)
    points = network.arrays["points"].double()
    _, transform = tower.double().eval().feat(points)
    close(transform.flatten(1), network.arrays["eval_extra1_f64"], 1e-10)
    tower.represent(points)
    assert tower.regulariser() is None  # not of an evaluation
    tower.train().represent(points)
    matrix = tower.transform.detach()
    away = matrix @ matrix.mT - torch.eye(64).double()
    value = tower.regulariser()
    assert value.item() == pytest.approx(0.001 * away.square().sum(dim=(1, 2)).sqrt().mean().item(), rel=1e-12)
    value.backward()
    assert tower.feat.fstn.fc3.weight.grad.abs().sum() > 0
    assert tower.regulariser() is None  # once a pass
    copy.deepcopy(tower)


@pytest.mark.parametrize(("case", "k"), [("dgcnn_head", 15), ("dgcnn_head", 5), ("pointnet_head", 0)])
def test_crosspoints_features_are_the_towers(golden: Path, case: str, k: int) -> None:
    """Its projection head is not of the tower (salt 1)."""
    folder = golden / "method" / "crosspoint_models"
    shapes, data = json.loads((folder / f"{case}.keys.json").read_text()), np.load(folder / f"{case}.npz")
    tower = new_tower("dgcnn", k=k) if k else new_tower("pointnet")
    weights = {name: filled(name, shapes[name], j, 1) for j, name in enumerate(sorted(shapes))}
    weights = {name.removeprefix("net."): value for name, value in weights.items()}
    own = {name: weights[name] for name in tower.state_dict() if name != "projection"}
    assert once(tower, weights).keys() - own.keys() == {name for name in shapes if name.startswith("inv_head.")}
    tower.load_state_dict(own, strict=False)
    points = torch.from_numpy(data["points"]).double()
    with torch.no_grad():
        found = tower.double().eval().represent(points)
    close(found, torch.from_numpy(data[f"k{k}_feat_f64" if k else "feat_f64"]), 1e-10)


@pytest.mark.parametrize("block", [nearest.LARGEST_BLOCK, 25 * 40, 2 * 40 * 40])
def test_neighbours_are_the_nearest_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Also where float32 would lose the differences: far from the origin."""
    monkeypatch.setattr(nearest, "LARGEST_BLOCK", block)
    points = torch.rand(5, 40, 7) + torch.tensor([1000.0, 0, 0, 0, 0, 0, 0])
    distances = (points.double()[:, :, None] - points.double()[:, None]).square().sum(dim=3)
    found = nearest_neighbours(points, 9)
    assert torch.equal(found, distances.argsort(dim=2)[..., :9])
    assert torch.equal(found[..., 0], torch.arange(40).expand(5, 40))
    with pytest.raises(ValueError, match="40 points for 41 nearest neighbours of each"):
        nearest_neighbours(points, 41)


def test_sums_and_maxima_over_neighbours_with_their_gradients() -> None:
    values = torch.randn(3, 20, 4, dtype=torch.float64, requires_grad=True)
    neighbours = torch.stack([torch.stack([torch.randperm(20)[:6] for _ in range(11)]) for _ in range(3)])
    edges = values[torch.arange(3)[:, None, None], neighbours]
    weights = torch.randn(3, 11, 4, dtype=torch.float64)
    for mode, wanted in (("sum", edges.sum(dim=2)), ("max", edges.max(dim=2).values)):
        found = over_neighbours(values, neighbours, mode)
        torch.testing.assert_close(found, wanted)
        gradients = [
            torch.autograd.grad((each * weights).sum(), values, retain_graph=True)[0] for each in (found, wanted)
        ]
        torch.testing.assert_close(*gradients)


def dense(conv: EdgeConv, features: Tensor, neighbours: Tensor) -> Tensor:
    """An edge convolution by its definition, over a tensor of all edges."""
    ends = features[torch.arange(len(features))[:, None, None], neighbours]
    starts = features[:, :, None].expand_as(ends)
    edges = torch.cat([ends - starts, starts], dim=3).permute(0, 3, 1, 2)
    layers = nn.Sequential(conv.get_submodule("0"), conv.get_submodule("1"), nn.LeakyReLU(0.2))
    return layers(edges).max(dim=3).values.transpose(1, 2)


@pytest.mark.parametrize("training", [True, False])
def test_an_edge_convolution_is_that_over_all_edges(training: bool) -> None:
    """With weights of the norm below and above 0: outputs, gradients, running statistics."""
    conv = EdgeConv(5, 8).double().train(training)
    with torch.no_grad():
        conv.norm.weight.copy_(torch.tensor([1.0, -1.0, 0.5, -2.0, 1.5, -0.1, 0.3, 0.0]))
        conv.norm.bias.normal_()
        conv.norm.running_mean.normal_()
        conv.norm.running_var.uniform_(0.5, 2)
    other = copy.deepcopy(conv)
    features = torch.randn(3, 30, 5, dtype=torch.float64, requires_grad=True)
    neighbours = nearest_neighbours(features, 6)
    probe = torch.randn(3, 30, 8, dtype=torch.float64)
    found = []
    for form, module in ((conv, conv), (lambda *given: dense(other, *given), other)):
        features.grad = None
        out = form(features, neighbours)
        (out * probe).sum().backward()
        gradients = [
            parameter.grad[:7] for parameter in module.parameters()
        ]  # at a weight of 0 any edge is the largest
        found.append([out, features.grad, *gradients, module.norm.running_mean, module.norm.running_var])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-11)
    assert conv.norm.num_batches_tracked == int(training)


def test_points_that_all_lie_in_one_place_have_a_feature() -> None:
    """The deviation of edges is 0 there."""
    tower = new_tower("dgcnn", k=4).train()
    found = tower.represent(torch.full((2, 30, 3), 0.3))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(each.grad).all() for each in tower.parameters() if each.grad is not None)


def test_dgcnn_in_16_bits_finds_its_edges_in_32() -> None:
    tower = new_tower("dgcnn", k=4, widths=(8, 8, 8, 8), emb_dims=16).eval()
    points = torch.randn(2, 40, 3)
    with torch.no_grad():
        wanted = tower.represent(points)
        with torch.autocast("cpu", torch.bfloat16):
            found = tower.represent(points)
    torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03 * wanted.abs().max().item())


@pytest.mark.parametrize("backbone", GOLDEN.values())
def test_a_batch_of_one_cloud(backbone: str) -> None:
    """Every point is a sample of a norm over points; a norm of single clouds, as in heads and T-nets, needs two."""
    tower = with_global_norms(new_tower(backbone)).train()
    head = with_global_norms(tower.classification_head(3)).train()
    cloud = torch.randn(1, 64, 3)
    words = "^batch norms learn from two clouds or more, this batch has one: optimizer.batch_size=2 or more$"
    if backbone == "pointnet_tnet":
        with pytest.raises(Stopped, match=words):
            tower.represent(cloud)
    else:
        with pytest.raises(Stopped, match=words):
            head(tower.represent(cloud))
    alone, both = tower.eval().represent(cloud), tower.represent(cloud.expand(2, -1, -1))
    torch.testing.assert_close(alone[0], both[1], rtol=1e-4, atol=1e-5)


def test_norms_of_torch_become_those_over_processes() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(4)), nn.LayerNorm(3))
    names = list(module.state_dict())
    assert with_global_norms(module) is module
    assert [type(each) for each in (module[0], module[1][0])] == [GlobalBatchNorm1d, GlobalBatchNorm2d]
    assert list(module.state_dict()) == names


def test_fewer_points_than_neighbours() -> None:
    with pytest.raises(ValueError, match="19 points for 20 nearest neighbours"):
        new_tower("dgcnn").represent(torch.rand(2, 19, 3))
    assert DgcnnSettings(k=7).fewest_points == 7
    assert isinstance(new_tower("dgcnn"), Dgcnn)
