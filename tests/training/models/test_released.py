"""Four steps of the released code, followed by our towers, optimiser groups, pseudo-labels and teacher.

The released terms are put together here, defects included, and nowhere else: L_cls over the selected alone, alignment
without a temperature, L_mim over tokens in place of channels, L_mpm towards the mask token, batch norms of a frozen
tokenizer that move, weight decay on tokens, positions and the logit scale. (The learning rates are the golden run's own
four; the schedule's are in test_schedules.)
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from released import released_model, released_name
from torch.nn.functional import normalize

from training.models.clip import pixel_mask
from training.models.cross_modal import CrossModalModel, parameter_groups
from training.models.ema_teacher import Teacher
from training.networks.point_bert import block_mask, group_points
from training.objectives import losses
from training.objectives.pseudo_labels import pseudo_labels
from training.settings.objective import EMASettings, LabelSettings

LABELS = LabelSettings(threshold=0.67, points_weight=0.9)
STEPS = 4
K_BIASES = "attn.in_proj_bias"  # their K third has no gradient but rounding, which Adam makes as large as any


def released_groups(model: CrossModalModel, lr: float) -> list[dict]:
    """Our groups, but with the released decay of everything that is not one-dimensional."""
    groups = []
    for group in parameter_groups(model, 0.05, 0.65, lr):
        plain = [p for p in group["params"] if p.ndim == 1]
        decayed = [p for p in group["params"] if p.ndim != 1]
        groups.append({**group, "params": plain, "weight_decay": 0.0})
        groups.append({**group, "params": decayed, "weight_decay": 0.05})
    return [group for group in groups if group["params"]]


def draws_of(mask_BG: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The draws (B, 2) that give a stored block mask: the block's middle is whichever centre gives this block."""
    count = mask_BG.shape[1]
    rows = []
    for mask, own in zip(mask_BG, centres, strict=True):
        share = ((mask.sum() + 0.5) / count - 0.3) / 0.1
        options = torch.stack([(torch.arange(count) + 0.5) / count, share.expand(count)], dim=1)
        blocks = block_mask(own.expand(count, -1, -1), options)
        rows.append(options[(blocks == mask).all(dim=1)][0])
    return torch.stack(rows)


class Released:
    """One golden run, step by step."""

    def __init__(self, golden, dtype: torch.dtype) -> None:
        folder = golden / "method" / "e2e_small"
        self.stored = np.load(folder / "e2e.npz")
        self.expected = json.loads((folder / "expected.json").read_text())
        self.dtype = dtype
        self.student = released_model(golden, math.log(20)).to(dtype).train()
        self.student.points.encoder.requires_grad_(False)  # its batch norms still move
        self.teacher = Teacher(self.student, EMASettings(start=0.99, end=0.9998, steps=3))
        self.optimizer = torch.optim.AdamW(released_groups(self.student, 1.0))

    def input(self, step: int, name: str) -> torch.Tensor:
        value = torch.from_numpy(self.stored[f"step{step}.{name}"])
        return value.to(self.dtype) if value.is_floating_point() else value

    def terms(self, step: int) -> dict[str, torch.Tensor]:
        """Every released term of a step, without its weight."""
        student, teacher = self.student, self.teacher.model
        with torch.no_grad():
            labels = pseudo_labels(
                teacher.image_logits(teacher.image_features(self.input(step, "weak_image"))),
                teacher.points_logits(teacher.point_features(self.input(step, "weak_points"))),
                LABELS,
            )
        assert labels.image_label.tolist() == self.stored[f"step{step}.combined_targets"].tolist()
        assert labels.image_confident.tolist() == self.stored[f"step{step}.conf_mask_image"].tolist()
        picture, mask = self.input(step, "strong_image"), self.input(step, "image_mask")
        cloud, hidden = self.input(step, "strong_points"), self.input(step, "pc_mask")
        image = student.image(picture, mask)
        centres, _ = group_points(cloud, student.points.settings.groups, student.points.settings.group_size)
        points = student.points(cloud, draws_of(hidden, centres))
        assert torch.equal(points.mask.bool(), hidden)
        x, y = normalize(image.feature, dim=1), normalize(points.feature, dim=1)
        outs = {"image": student.image_logits(x), "pc": student.points_logits(y)}
        share = labels.image_confident.mean()  # selected / B
        terms = {
            f"st_{name}": losses.confident_cross_entropy(out, labels.image_label, labels.image_confident) / share
            for name, out in outs.items()
        }
        terms |= {f"fair_{name}": losses.fairness(out) for name, out in outs.items()}
        mean = losses.masked_image(student.image.reconstruct(image.patches), picture, pixel_mask(mask.to(x.dtype), 16))
        terms["mim_image"] = mean * 3 / (image.patches.shape[1] + 1)
        rebuilt, token = student.points.reconstruct(points.tokens), student.points.mask_token
        terms["mim_pc"] = (rebuilt - token).abs()[hidden].sum() / hidden.sum() / len(x)
        patches = normalize(student.image.project_tokens(image.patches), dim=2)
        terms["align_image"] = losses.local_global(patches, x, mask.flatten(1).to(x.dtype))
        own = student.points.own_projection
        whole = normalize(points.cls @ own, dim=1)
        terms["align_pc"] = losses.local_global(normalize(points.tokens @ own, dim=2), whole, points.mask)
        terms["both_align"] = 2 * losses.alignment(x, y, temperature=1.0)
        return terms

    def step(self, step: int) -> torch.Tensor:
        """One update; gives the total, and holds every term to the stored one."""
        terms = self.terms(step)
        stored = {name: float(self.stored[f"step{step}.loss_{name}"]) for name in terms if name != "both_align"}
        stored["both_align"] = sum(
            float(self.stored[f"step{step}.loss_{name}_align"]) for name in ("image_pc", "pc_image")
        )
        tolerance = 1e-9 if self.dtype == torch.float64 else 2e-5
        assert {n: v.item() for n, v in terms.items()} == pytest.approx(stored, rel=tolerance)
        total = torch.stack([(0.2 if n in ("align_image", "align_pc") else 1) * v for n, v in terms.items()]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self.expected["settings"]["lr_per_step"][step] * group["lr_scale"]
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.teacher.update(self.student, step)
        return total.detach()


def test_four_released_steps_in_double_precision(golden) -> None:
    """Losses to 1e-9; every tensor of student and teacher by its sum and its norm, some whole."""
    run = Released(golden, torch.float64)
    totals = [run.step(step).item() for step in range(STEPS)]
    assert totals == pytest.approx(run.expected["loss_f64"], rel=1e-9)
    for model, sums, prefix in (
        (run.student, run.expected["student_sum_l2"], "final.student."),
        (run.teacher.model, run.expected["ema_sum_l2"], "final.ema."),
    ):
        ours = {released_name(name): value.double() for name, value in model.state_dict().items()}
        assert set(ours) == set(sums)
        for name, (total, norm) in sums.items():
            counts = name.endswith("num_batches_tracked") and model is run.teacher.model  # released: truncated
            if not counts and not name.endswith(K_BIASES):
                assert ours[name].sum().item() == pytest.approx(total, rel=1e-7, abs=1e-7), name
                assert ours[name].norm().item() == pytest.approx(norm, rel=1e-9), name
        for stored in run.stored.files:
            name = stored.removeprefix(prefix)
            if stored.startswith(prefix) and not name.endswith("num_batches_tracked"):
                np.testing.assert_allclose(ours[name].detach().numpy(), run.stored[stored], rtol=0, atol=1e-9)


def test_four_released_steps_in_single_precision(golden) -> None:
    """Losses to 5e-6; every tensor to 5e-5 of its largest entry, against the run in double precision."""
    run, exact = Released(golden, torch.float32), Released(golden, torch.float64)
    totals = [run.step(step).item() for step in range(STEPS)]
    assert totals == pytest.approx(run.expected["loss_f64"], rel=5e-6)
    for step in range(STEPS):
        exact.step(step)
    for ours, theirs in ((run.student, exact.student), (run.teacher.model, exact.teacher.model)):
        for (name, value), wanted in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            value, wanted = value.double(), wanted.double()
            if name.endswith(K_BIASES):
                third = len(value) // 3
                value, wanted = (torch.cat([v[:third], v[2 * third :]]) for v in (value, wanted))
            limit = 5e-5 * max(wanted.abs().max().item(), 1.0)
            assert (value - wanted).abs().max().item() <= limit, name


def test_these_steps_tell_our_own_decay_from_the_released(golden) -> None:
    """Ours leaves tokens, positions and the logit scale undecayed: from the second step on, the losses are others."""
    run = Released(golden, torch.float64)
    run.optimizer = torch.optim.AdamW(parameter_groups(run.student, 0.05, 0.65, 1.0))
    run.step(0)
    with pytest.raises(AssertionError, match="st_image"):
        run.step(1)
