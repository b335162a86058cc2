"""Every loss against a value by hand, against golden data, and at its edges."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from training.objectives import losses


def test_cross_entropy_is_divided_by_the_batch() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
    label, confident = torch.tensor([0, 1, 1]), torch.tensor([1.0, 1.0, 0.0])
    expected = -(np.log(0.5) + np.log(0.75)) / 3
    assert losses.confident_cross_entropy(logits, label, confident).item() == pytest.approx(expected)


def test_an_empty_confident_set_is_exactly_zero() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    loss = losses.confident_cross_entropy(logits, torch.zeros(4, dtype=torch.long), torch.zeros(4))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
    predicted = torch.randn(2, 3, 4, 4, requires_grad=True)
    for empty in (
        losses.masked_image(predicted, torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4)),
        losses.masked_points(torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.zeros(2, 5)),
        losses.local_global(torch.randn(2, 5, 3), torch.randn(2, 3), torch.zeros(2, 5)),
    ):
        assert empty.item() == 0


def test_fairness_by_hand_and_without_infinity() -> None:
    probability = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    expected = -(np.log(0.6) + np.log(0.4)) / 2
    assert losses.fairness(probability.log()).item() == pytest.approx(expected)
    sure = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    loss = losses.fairness(sure)
    loss.backward()
    assert loss.item() == pytest.approx(500)
    assert torch.isfinite(sure.grad).all()


def test_alignment_by_hand() -> None:
    image = torch.eye(2)
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    rows = -np.log(np.exp(2) / (2 * np.exp(2)))  # row 0: both alike; row 1: both alike
    columns = [-np.log(np.exp(2) / (np.exp(2) + 1)), -np.log(1 / (np.exp(2) + 1))]
    total = (2 * rows + sum(columns)) / 2
    assert losses.alignment(image, points, 0.5, "sum").item() == pytest.approx(total)
    assert losses.alignment(image, points, 0.5, "mean").item() == pytest.approx(total / 2)


def test_masked_losses_by_hand() -> None:
    predicted, image = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    image[0, :, 0, 0] = 5
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert losses.masked_image(predicted, image, mask).item() == 3  # (5 + 1) / 2, mean over channels
    tokens = torch.tensor([[[1.0, 3.0], [10.0, 10.0]]], requires_grad=True)
    loss = losses.masked_points(torch.zeros(1, 2, 2, requires_grad=True), tokens, torch.tensor([[1.0, 0.0]]))
    assert loss.item() == 2
    loss.backward()
    assert tokens.grad is None  # the target is detached
    local = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert losses.local_global(local, torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)).item() == 1


def test_local_and_global_move_towards_one_another() -> None:
    """Both learn (the paper has no stop-gradient), from masked tokens alone: half the squared distance's gradient."""
    local = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]], requires_grad=True)
    whole = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = losses.local_global(local, whole, torch.tensor([[0.0, 1.0, 1.0]]))
    assert loss.item() == pytest.approx((2 + 0.16 + 0.64) / 2)
    loss.backward()
    torch.testing.assert_close(local.grad, torch.tensor([[[0.0, 0.0], [-1.0, 1.0], [-0.4, 0.8]]]))
    torch.testing.assert_close(whole.grad, torch.tensor([[1.4, -1.8]]))


def test_masked_losses_are_means_over_what_is_masked() -> None:
    tokens = torch.tensor([[[1.0, 3.0], [10.0, 10.0]], [[5.0, 5.0], [7.0, 7.0]]])
    zero = torch.zeros(2, 2, 2)
    assert losses.masked_points(zero, tokens, torch.tensor([[1.0, 0.0], [0.0, 0.0]])).item() == 2
    assert losses.masked_points(zero, tokens, torch.tensor([[1.0, 1.0], [1.0, 0.0]])).item() == pytest.approx(17 / 3)
    local = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert losses.local_global(local, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item() == 0
    assert losses.local_global(local, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item() == 2


def test_divergence_from_uniform_by_hand() -> None:
    assert losses.divergence_from_uniform(torch.zeros(3, 4)).item() == pytest.approx(0, abs=1e-6)
    sure = torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    assert losses.divergence_from_uniform(sure).item() == pytest.approx(np.log(4))
    half = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    expected = 0.5 * np.log(0.5) + 0.5 * np.log(0.25) + np.log(3)
    assert losses.divergence_from_uniform(half).item() == pytest.approx(expected, rel=1e-5)


WORKER = """
import os, sys, torch, torch.distributed as dist
from training.objectives import losses
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
image = torch.nn.functional.normalize(torch.randn(8, 5, dtype=torch.float64), dim=1)
points = torch.nn.functional.normalize(torch.randn(8, 5, dtype=torch.float64), dim=1)
logits = torch.randn(8, 4, dtype=torch.float64)
mine = [t[rank * 4 : rank * 4 + 4].clone().requires_grad_() for t in (image, points, logits)]
loss = losses.alignment(mine[0], mine[1], 0.07) + losses.fairness(mine[2])
loss.backward()
torch.save([loss.detach(), *[m.grad for m in mine]], sys.argv[3])
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_give_the_gradients_of_one(tmp_path) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    files = [tmp_path / "0.pt", tmp_path / "1.pt"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "rendezvous"), str(files[rank])], env=environment
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    torch.manual_seed(0)
    image = normalize(torch.randn(8, 5, dtype=torch.float64), dim=1).requires_grad_()
    points = normalize(torch.randn(8, 5, dtype=torch.float64), dim=1).requires_grad_()
    logits = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    loss = losses.alignment(image, points, 0.07) + losses.fairness(logits)
    loss.backward()
    saved = [torch.load(file) for file in files]
    for rank in range(2):
        torch.testing.assert_close(saved[rank][0], loss.detach())
        for number, tensor in enumerate((image, points, logits), start=1):
            # every rank's backward adds its own copy of the global loss; DDP averages, which gives this
            torch.testing.assert_close(saved[rank][number] / 2, tensor.grad[rank * 4 : rank * 4 + 4])


@pytest.mark.parametrize(("name", "scale"), [("init_1_over_0.07", 1 / 0.07), ("clip_100", 100.0)])
def test_the_contrastive_loss_equals_golden(golden, name: str, scale: float) -> None:
    """With the identity as positives it is CLIP's loss: points-text plus points-image is ULIP's."""
    folder = golden / "method" / "ulip_loss"
    stored = np.load(folder / "ulip_loss.npz")
    expected = json.loads((folder / "expected.json").read_text())["results"][f"{name}_f64"]
    given = {n: torch.from_numpy(stored[f"{n}_embed"]).double().requires_grad_() for n in ("pc", "text", "image")}
    points, text, image = (normalize(value, dim=1) for value in given.values())
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    alone = torch.eye(len(points), dtype=torch.bool)
    loss = losses.contrastive(points, text, alone, logit_scale) + losses.contrastive(points, image, alone, logit_scale)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-12)
    assert logit_scale.grad.item() == pytest.approx(expected["grad_logit_scale"], rel=1e-9)
    for n, value in given.items():
        np.testing.assert_allclose(value.grad, stored[f"{name}.grad_{n}_f64"], atol=1e-12)


def test_equal_captions_are_positives_of_one_another() -> None:
    left = normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    right = normalize(torch.tensor([[1.0, 0.2], [0.3, 1.0], [1.0, 0.9]]), dim=1)
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    expected = 0.0
    for a, b in ((left, right), (right, left)):
        logits = 3.0 * a @ b.T
        for row in range(3):
            of_row = [-(logits[row, j] - logits[row].logsumexp(0)) for j in range(3) if same[row, j]]
            expected += sum(of_row) / len(of_row) / 6
    assert losses.contrastive(left, right, same, torch.tensor(3.0)).item() == pytest.approx(float(expected), rel=1e-6)


def test_biasedness() -> None:
    assert losses.biasedness(torch.tensor([5.0, 5.0, 5.0, 5.0])).item() == pytest.approx(0, abs=1e-7)
    assert losses.biasedness(torch.tensor([9.0, 0.0, 0.0, 0.0])).item() == pytest.approx(np.log(4))
    expected = 0.75 * np.log(0.75 * 2) + 0.25 * np.log(0.25 * 2)
    assert losses.biasedness(torch.tensor([3.0, 1.0])).item() == pytest.approx(expected)
    assert losses.biasedness(torch.zeros(3)).item() == 0
