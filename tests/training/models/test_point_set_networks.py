"""PointNet++, RS-CNN and PointMLP: upstream outputs and gradients, what their keys mean, what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_backbones import golden_network, with_weights
from torch import Tensor, nn

from training.models.backbones import TOWERS
from training.models.point_backbone import PointBackbone
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
    largest = max(wanted.values())
    for name, norm in wanted.items():  # a bias before a batch norm has none: rounding is all that it gets
        assert norms[name] == pytest.approx(norm, rel=1e-9, abs=1e-9 * largest), name
