"""Trains a label-free 3D classifier from shards; `training.load` gives a trained model to Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from os import PathLike

    import torch

    from training.evaluation.classifier import Classifier


def load(
    checkpoint: str | PathLike[str],
    who: Literal["student", "teacher"] = "student",
    device: str | torch.device = "cpu",
) -> Classifier:
    """Loads a trained model.

    checkpoint: a run (its last step), one of its checkpoints/step-* folders, or a file that `Classifier.save` wrote.
    who: the student, or its moving average (a file holds only one of them). Pictures may be what `renderers.draw`
    gives, files, PIL images or arrays of any size; clouds may have any number of points in any unit, with +Y up. All
    are prepared as in evaluation. Features are float32 on the CPU. Raises manifests.errors.Refused, one line, where
    there is no such checkpoint.

    >>> import numpy as np, PIL.Image, training
    >>> model = training.load("runs/mine")
    >>> cloud, picture = np.random.default_rng(0).normal(size=(500, 3)), PIL.Image.new("RGB", (80, 60))
    >>> model.encode_image(picture).shape, model.encode_points(cloud).shape  # unit features
    (torch.Size([1, 128]), torch.Size([1, 128]))
    >>> model.encode_text(["a photo of a mug.", "a photo of a bowl."]).shape
    torch.Size([2, 128])
    >>> model.classify(points=cloud, image=picture).names[0] in model.classes
    True
    >>> model.classify(points=cloud, classes=["mug", "bowl"]).names[0] in ("mug", "bowl")  # by the text tower
    True
    """
    from manifests.errors import Refused
    from training.evaluation.classifier import load as load_classifier

    try:
        return load_classifier(checkpoint, who, device)
    except Refused as error:
        raise error from None  # its one line says all
