"""The earth mover's distance: the released values, the bound of the auction, and gradients where clouds meet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from manifests.errors import Stopped
from training.objectives import transport
from training.objectives.transport import BOUND, assignment, auction, boxed, earth_movers_distance


def arrays(golden: Path, name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(golden / "method" / f"{name}.npz").items()}


@pytest.mark.parametrize(
    ("form", "reduction", "box", "value"),
    [("released", "mean", "released", "emd_per_sample"), ("paper", "sum", "none", "emd_sum_per_sample")],
)
def test_released_and_printed_values(golden: Path, form: str, reduction: str, box: str, value: str) -> None:
    stored = arrays(golden, "pointcmt_stages/emd")
    moved, target = stored["pred"].requires_grad_(), stored["target"].requires_grad_()
    assert assignment(boxed(moved, box), boxed(target, box)).equal(stored[f"{form}_assignment"])
    found = earth_movers_distance(moved, target, reduction, box)
    torch.testing.assert_close(found, stored[f"{form}_{value}"], rtol=1e-9, atol=1e-12)
    found.mean().backward()
    torch.testing.assert_close(moved.grad, stored[f"{form}_grad_pred"], rtol=1e-9, atol=1e-12)
    assert target.grad is None


@pytest.mark.parametrize("how", ["released", "centred"])
def test_clouds_in_their_boxes(golden: Path, how: str) -> None:
    stored = arrays(golden, "pointcmt_stages/emd")
    for name in ("pred", "target"):
        torch.testing.assert_close(boxed(stored[name], how), stored[f"{how}_scaled_{name}"], rtol=1e-9, atol=1e-12)


def test_the_clouds_of_a_student(golden: Path) -> None:
    """A batch of the released loss: features through the released generator, in float32 and in float64."""
    stored = arrays(golden, "pointcmt/losses")
    weight = stored["decoder_weight"]
    for kind, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        own, other = ((stored[f"{of}_feature"].to(kind) @ weight.T.to(kind)).view(6, 128, 3) for of in ("pc", "mv"))
        found = earth_movers_distance(own, other, "mean", "released").mean()
        assert found.item() == pytest.approx(0.10199230124270577, rel=tolerance)


@pytest.mark.parametrize("count", [64, 256, 257, 600, pytest.param(1024, marks=pytest.mark.slow)])
def test_the_bound_of_an_auction(count: int) -> None:
    """A one-to-one assignment that costs at most BOUND more than scipy's, of even clouds, near ones and far ones."""
    g = torch.Generator().manual_seed(count)
    sphere = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    target = torch.rand(count, 3, generator=g) * torch.tensor([1.0, 0.4, 0.1])
    moved = torch.stack([sphere, target + 0.01 * sphere, target[torch.randperm(count, generator=g)] + 2])
    cost = torch.cdist(moved, target.expand(3, -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    found = auction(cost)
    assert found.sort(dim=1).values.equal(torch.arange(count).expand(3, -1))
    paid = cost.gather(2, found[:, :, None]).sum(dim=(1, 2))
    least = torch.tensor([each[linear_sum_assignment(each)].sum().item() for each in cost.numpy()])
    assert (paid <= (1 + BOUND) * least).all()
    exact = assignment(moved, target.expand(3, -1, -1))
    walked = cost.gather(2, exact[:, :, None]).sum(dim=(1, 2))
    torch.testing.assert_close(walked, least, rtol=1e-6, atol=0)  # on the CPU


@pytest.mark.parametrize("count", [5, 300])
def test_gradients_where_clouds_meet(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same points in another order: distance and gradient 0, exactly and by auction; so for a cloud in one spot."""
    monkeypatch.setattr(transport, "EXACT_ON_CPU", transport.EXACT_TO)  # as on a GPU
    cloud = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(0))
    moved = cloud[:, torch.randperm(count)].clone().requires_grad_()
    found = earth_movers_distance(moved, cloud)
    found.sum().backward()
    assert found.tolist() == [0, 0]
    assert moved.grad.abs().max() == 0
    spot = torch.zeros(1, count, 3, requires_grad=True)
    earth_movers_distance(spot, cloud[:1], box_scale="centred").sum().backward()
    assert spot.grad.isfinite().all()


@pytest.mark.parametrize("count", [5, 300])
def test_what_is_no_number_or_fits_no_cloud(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "EXACT_ON_CPU", transport.EXACT_TO)
    cloud = torch.randn(1, count, 3)
    broken = cloud.clone()
    broken[0, 1, 2] = torch.nan
    assert earth_movers_distance(broken, cloud).isnan().all()  # the loop refuses such a loss
    with pytest.raises(Stopped, match="as many points on both sides"):
        earth_movers_distance(cloud[:, 1:], cloud)
