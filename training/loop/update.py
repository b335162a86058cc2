"""One update of a run: the rate, a method's losses, the optimiser, the teacher. Nothing here waits for the device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from manifests.errors import Refused, Stopped
from training import distributed
from training.loop.data_parallel import averaged
from training.loop.lamb import Lamb
from training.loop.metric_log import Log
from training.loop.schedule import Schedule
from training.models.cross_modal import CrossModalModel, parameter_groups
from training.models.ema_teacher import Teacher
from training.models.part_model import PartModel, TrainedModel
from training.networks.global_batch_norm import OverProcesses, with_global_norms
from training.networks.precision import settle
from training.objectives import step_of
from training.settings.fit_recipe import FitRecipe, TaughtRecipe
from training.settings.optimizer import OptimizerSettings

SMALLEST_SCALE = 1.0  # of the loss, with precision=fp16: gradients that overflow without any scaling


@dataclass
class Updates:
    """What an update changes, and the course of learning rates."""

    recipe: FitRecipe
    student: TrainedModel
    teacher: Teacher[Any] | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        self._step = averaged(step_of(self.recipe.method), self.student)
        self._norms = point_norms(self.student)
        device = next(self.student.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.recipe.precision == "fp16")

    @property
    def total_steps(self) -> int:
        """Of the run."""
        return self.schedule.total

    def __call__(self, batch: Any, step: int) -> float:
        """One step of the optimiser and the teacher, after `step` earlier ones; gives the learning rate.

        Gradients are averaged over all processes (training/loop/data_parallel.py). If the loss is not finite, the
        device skips the update in all processes, and the log reports it at its next row.
        """
        rate = self.schedule.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        if self.recipe.optimizer.norm_momentum:
            for norm in self._norms:
                norm.momentum = self.schedule.norm_momentum(step)
        teacher = None if self.teacher is None else self.teacher.model
        result = self._step(self.student, teacher, batch, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        with distributed.answered():
            self.scaler.scale(result.total).backward()
        overflow = self._unscaled()
        result = replace(result, figures=result.figures | {"gradient_norm": self._clipped()} | overflow)
        bad = self.log.add(result, step + 1)
        bad = torch.maximum(bad, overflow["overflows"]) if overflow else bad
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # fused optimisers read it
        self.optimizer.step()
        self.scaler.update()
        if self.recipe.logit_scale == "clamped":
            self.student.clamp_scale()
        if self.teacher is not None:
            self.teacher.update(self.student, step)
        return rate

    def _unscaled(self) -> dict[str, torch.Tensor]:
        """Divides gradients by the loss scale. Gives that scale and 1.0 where it made them overflow, for fp16 alone."""
        if not self.scaler.is_enabled():
            return {}
        scale = self.scaler.scale(torch.ones((), device=next(self.student.parameters()).device))
        self.scaler.unscale_(self.optimizer)
        found = self.scaler._found_inf_per_device(self.optimizer)  # torch has no public name for it
        return {"loss_scale": scale, "overflows": torch.stack(list(found.values())).amax()}

    def refuse_fault(self) -> None:
        """Raises Stopped where a loss was not finite, or no loss scale keeps gradients from overflowing."""
        self.log.refuse_fault()
        if self.scaler.get_scale() < SMALLEST_SCALE:
            raise Stopped(
                f"gradients overflow float16 at every loss scale down to {SMALLEST_SCALE:g}; lower optimizer.lr, or "
                "use precision=fp32 (bf16 on a card that has it)"
            )

    def _clipped(self) -> torch.Tensor:
        """The norm of the gradient of all processes together; a longer one is cut to `optimizer.clip_norm`."""
        gradients = [parameter.grad for parameter in self.student.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.recipe.optimizer.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self.student.parameters(), self.recipe.optimizer.clip_norm, norm)
        return norm


def updates_of(student: TrainedModel, recipe: FitRecipe, steps_an_epoch: int) -> Updates:
    """The optimiser of a student that is already on its device, and its teacher where the method has one."""
    settings = recipe.optimizer
    with_global_norms(student)
    _refuse_batch_norms(student, recipe)
    student.precision = recipe.precision
    settle(recipe.precision)
    student.parts = settings.accumulate
    if recipe.activation_checkpointing:
        student.checkpoint_activations()
    teacher: Teacher[Any] | None = Teacher(student, recipe.ema) if isinstance(recipe, TaughtRecipe) else None
    if recipe.compile:
        for model in (student,) if teacher is None else (student, teacher.model):
            model.compile_towers()
    return Updates(recipe, student, teacher, optimizer_of(student, settings), Schedule.of(settings, steps_an_epoch))


def _refuse_batch_norms(student: TrainedModel, recipe: FitRecipe) -> None:
    """Raises Refused where batch norms of a tower would learn from another batch than the whole one, or twice."""
    settings = recipe.optimizer
    headed = getattr(student, "points_head", None) is not None
    towers = [(f"points.backbone={recipe.points.backbone}", point_norms(student), headed)]
    if isinstance(student, CrossModalModel):
        towers.append((recipe.image.tower, _norms(student.image), True))
    for name, every, over_objects in towers:
        norms = [each for each in every if each.training]
        what = f"{name} learns batch norms, which need"
        if norms and settings.batch_size == 1 and over_objects:
            raise Refused(f"optimizer.batch_size=1: {what} two objects at least")
        if norms and settings.accumulate > 1:
            raise Refused(f"optimizer.accumulate={settings.accumulate}: {what} the whole batch at once")
        if distributed.world() > 1 and not all(isinstance(each, OverProcesses) for each in norms):
            raise Refused(f"{what} the batch of all processes: take BatchNorm1d or BatchNorm2d of torch.nn")
    blocks = student.image.blocks if isinstance(student, CrossModalModel) else ()
    if recipe.activation_checkpointing and any(each.training for block in blocks for each in _norms(block)):
        words = f"{recipe.image.tower} learns batch norms, which would learn twice from a batch"
        raise Refused(f"activation_checkpointing=true: {words}")


def point_norms(student: TrainedModel) -> list[_BatchNorm]:
    """The batch norms of the point tower and of its head."""
    parts = (student.points, student.head if isinstance(student, PartModel) else student.points_head)
    return [each for part in parts if part is not None for each in _norms(part)]


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [each for each in module.modules() if isinstance(each, _BatchNorm)]


def optimizer_of(student: TrainedModel, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimiser of the groups of `parameter_groups`. Fused: an update can be skipped on the device (found_inf)."""
    groups = parameter_groups(
        student, settings.weight_decay, settings.layer_decay, settings.lr, settings.decayed == "all"
    )
    if settings.kind == "adamw":
        return torch.optim.AdamW(groups, betas=settings.betas, fused=True)
    if settings.kind == "adam":
        return torch.optim.Adam(groups, betas=settings.betas, fused=True)
    if settings.kind == "lamb":
        return Lamb(groups, settings.betas)
    sgd = torch.optim.SGD(groups, momentum=settings.momentum, fused=True)
    for parameter in (each for group in groups for each in group["params"] if settings.momentum):
        # torch makes it at the first step, and leaves what was in memory there where that one is skipped
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd
