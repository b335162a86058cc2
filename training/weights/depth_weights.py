"""Which tower of a file with two picture towers, CLIP2Point's, becomes the image tower of a new run."""

from __future__ import annotations

from dataclasses import replace

from manifests.errors import Refused
from training.settings.fit_recipe import FitRecipe
from training.weights.formats import WeightsFile


def of_pictures(what: str, weights: WeightsFile, parts: tuple[str, ...], recipe: FitRecipe) -> WeightsFile:
    """The weights with the depth tower as the image tower, where a file has one and the recipe's model has not.

    Such a run sees depth pictures with it. A model that has both towers gets both. Raises Refused for a run of RGB.
    """
    depth = weights.below("depth.")
    if not depth or "image" not in parts or recipe.has_depth_tower:
        return weights
    if recipe.data.channel == "rgb":
        raise Refused(
            f"{what} has a tower of depth pictures, which this run would show RGB: data.views=NAME data.channel=depth"
        )
    rest = {name: value for name, value in weights.tensors.items() if not name.startswith(("image.", "depth."))}
    seen = tuple(f"the image tower: {name}" for name in weights.below("image."))
    named = {f"image.{name}": value for name, value in depth.items()}
    return replace(weights, tensors=rest | named, left_over=(*weights.left_over, *seen))
