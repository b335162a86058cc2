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

        model = training.load("runs/cross_most")
        model.encode_image(PIL.Image.open("mug.png"))             # unit features (1, E)
        model.encode_points(numpy_array)                          # (points, 3) or (B, points, 3) -> (B, E)
        model.encode_text(["a photo of a mug."])                  # (1, E)
        model.classify(points=cloud, pictures=picture).names      # ("mug",)
        model.classify(points=cloud, classes=["mug", "bowl"])     # other names, by the text tower

    checkpoint: a run (its last step), one of its checkpoints/step-* folders, or a file that `Classifier.save` wrote.
    who: the student, or its moving average (a file holds only one of them). Pictures may be PIL images or uint8 arrays
    of any size; clouds may have any number of points in any unit, with +Y up. Both are prepared as in evaluation.
    Features are float32 on the CPU. Raises manifests.errors.Refused, one line, where there is no such checkpoint.
    """
    from training.evaluation.classifier import load as load_classifier

    return load_classifier(checkpoint, who, device)
