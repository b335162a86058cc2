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

from training import losses


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


MODES = {  # golden name -> (our mode, factor on the points' confidence)
    "joint": ("joint", 0.9),
    "none": ("own", 1.0),
    "random": ("random", 0.9),
}


def golden_inputs(golden) -> dict[str, torch.Tensor]:
    stored = np.load(golden / "method" / "losses" / "losses.npz")
    return {name: torch.from_numpy(stored[name]) for name in stored.files}


def test_losses_and_gradients_equal_golden(golden) -> None:
    """The released run's own terms on stored logits and features, in float64: value and gradient."""
    data = golden_inputs(golden)
    expected = json.loads((golden / "method/losses/expected.json").read_text())["modes"]["joint"]
    image, points = (data[f"in_s_{m}_logits"].double().requires_grad_() for m in ("img", "pc"))
    f_image, f_points = (data[f"in_f_{m}"].double().requires_grad_() for m in ("img", "pc"))
    label, mask = data["joint.combined_targets"].long(), data["joint.conf_mask_image"].double()
    selected = mask.sum()
    fair = [losses.fairness(image), losses.fairness(points)]
    cls = [losses.confident_cross_entropy(out, label, mask) for out in (image, points)]
    align = losses.alignment(f_image, f_points, temperature=1.0, reduction="mean")
    assert fair[0].item() == pytest.approx(expected["loss_fair_image"], rel=1e-12)
    assert fair[1].item() == pytest.approx(expected["loss_fair_pc"], rel=1e-12)
    assert sum(cls).item() == pytest.approx(expected["paper_eq2_L_cls_with_code_conf_weight_0.9"], rel=1e-12)
    assert (cls[0] * 24 / selected).item() == pytest.approx(expected["loss_st_image"], rel=1e-12)
    assert 2 * align.item() == pytest.approx(expected["L_align_code_sum_of_both_directions"], rel=1e-12)
    (sum(fair) + sum(cls) * 24 / selected + 2 * align).backward()
    for name, tensor in (("s_img_logits", image), ("s_pc_logits", points), ("f_img", f_image), ("f_pc", f_points)):
        gradient = data[f"joint.grad_{name}"].double()
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-9, atol=1e-12)


IMAGE, POINTS = ("pseudo_targets_image", "conf_mask_image"), ("pseudo_targets_pc", "conf_mask_pc")
COMBINED = ("combined_targets", "conf_mask_image")
RELEASED = {  # golden mode -> stored labels and confident set that teach the image branch, and the point branch
    "joint": (COMBINED, COMBINED),
    "random": (COMBINED, COMBINED),
    "none": (IMAGE, POINTS),
    "image_only": (IMAGE, IMAGE),
    "point_only": (POINTS, POINTS),
    "agreement": (IMAGE, POINTS),
}


@pytest.mark.parametrize("mode", RELEASED)
def test_every_released_mode_equals_golden(golden, mode: str) -> None:
    """Values of L_cls and gradients of the total, with the labels and confident sets that the released run stored."""
    data = golden_inputs(golden)
    expected = json.loads((golden / "method/losses/expected.json").read_text())["modes"][mode]
    total = torch.zeros((), dtype=torch.float64)
    tensors = {}
    for short, long, (target, chosen) in zip(("img", "pc"), ("image", "pc"), RELEASED[mode], strict=True):
        logits = tensors[f"s_{short}_logits"] = data[f"in_s_{short}_logits"].double().requires_grad_()
        confident = data[f"{mode}.{chosen}"].double()
        cls = losses.confident_cross_entropy(logits, data[f"{mode}.{target}"].long(), confident)
        released = cls * len(confident) / confident.sum()  # released: divided by the number selected
        assert released.item() == pytest.approx(expected[f"loss_st_{long}"], rel=1e-12)
        total = total + released + losses.fairness(logits)
    for short in ("img", "pc"):
        tensors[f"f_{short}"] = data[f"in_f_{short}"].double().requires_grad_()
    (total + 2 * losses.alignment(tensors["f_img"], tensors["f_pc"], temperature=1.0)).backward()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, data[f"{mode}.grad_{name}"].double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "stored", "threshold"), [("image", "image_only", 0.80), ("points", "point_only", 0.82)]
)
def test_labels_of_one_modality_equal_golden(golden, mode: str, stored: str, threshold: float) -> None:
    """Table 4's `only` rows: one modality's labels and confident set teach both branches (released thresholds)."""
    from training.teacher import LabelSettings, pseudo_labels

    data = golden_inputs(golden)
    settings = LabelSettings(mode=mode, threshold=threshold)
    labels = pseudo_labels(data["in_t_img_logits"].double(), data["in_t_pc_logits"].double(), settings)
    (target, chosen), _ = RELEASED[stored]
    for label, confident in (
        (labels.image_label, labels.image_confident),
        (labels.points_label, labels.points_confident),
    ):
        assert label.tolist() == data[f"{stored}.{target}"].tolist()
        assert confident.tolist() == data[f"{stored}.{chosen}"].double().tolist()


def test_divergence_from_uniform_by_hand() -> None:
    assert losses.divergence_from_uniform(torch.zeros(3, 4)).item() == pytest.approx(0, abs=1e-6)
    sure = torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    assert losses.divergence_from_uniform(sure).item() == pytest.approx(np.log(4))
    half = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    expected = 0.5 * np.log(0.5) + 0.5 * np.log(0.25) + np.log(3)
    assert losses.divergence_from_uniform(half).item() == pytest.approx(expected, rel=1e-5)


def test_alignment_equals_the_papers_value(golden) -> None:
    data = golden_inputs(golden)
    value = losses.alignment(data["in_f_img"].double(), data["in_f_pc"].double(), 0.07, "sum")
    assert value.item() == pytest.approx(33.997351, rel=1e-7)
    value = losses.alignment(data["in_f_img"].double(), data["in_f_pc"].double(), 0.01, "sum")
    assert value.item() == pytest.approx(132.187762, rel=1e-7)


@pytest.mark.parametrize("name", MODES)
def test_pseudo_labels_equal_golden(golden, name: str) -> None:
    from training.teacher import LabelSettings, pseudo_labels

    data = golden_inputs(golden)
    mode, weight = MODES[name]
    image, points = data["in_t_img_logits"].double(), data["in_t_pc_logits"].double()
    draw = None
    if mode == "random":
        draw = torch.where(data["random.picked"] == 1, 0.9, 0.1)
    settings = LabelSettings(mode=mode, points_weight=weight, threshold=0.84)
    labels = pseudo_labels(image, points, settings, draw)
    image_target = data[f"{name}.combined_targets"] if mode != "own" else data[f"{name}.pseudo_targets_image"]
    points_target = data[f"{name}.combined_targets"] if mode != "own" else data[f"{name}.pseudo_targets_pc"]
    assert labels.image_label.tolist() == image_target.long().tolist()
    assert labels.points_label.tolist() == points_target.long().tolist()
    if mode == "own":  # the released baseline has thresholds 0.80 and 0.82
        image_labels = pseudo_labels(image, points, LabelSettings(mode="own", threshold=0.80))
        points_labels = pseudo_labels(image, points, LabelSettings(mode="own", threshold=0.82))
        assert image_labels.image_confident.tolist() == data["none.conf_mask_image"].double().tolist()
        assert points_labels.points_confident.tolist() == data["none.conf_mask_pc"].double().tolist()
    else:
        assert labels.image_confident.tolist() == data[f"{name}.conf_mask_image"].double().tolist()


WORKER = """
import os, sys, torch, torch.distributed as dist
from training import losses
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
