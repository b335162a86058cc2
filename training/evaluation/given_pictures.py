"""Pictures as a person has them, drawn views, files, PIL images or arrays, sorted into objects and made uint8."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_KINDS = "uint8 (H, W, 3) or float (3, H, W) in 0 to 1, RGB"


class Prepared(Tensor):
    """What `Classifier.preprocess` made, (3, S, S) or (B, 3, S, S): resized and normalised already."""


def is_prepared(given: Any) -> bool:
    """Whether a picture, or a batch, is normalised already: by its type, or as floats that no picture has."""
    if isinstance(given, Prepared):
        return True
    return isinstance(given, Tensor) and given.is_floating_point() and bool(((given < 0) | (given > 1)).any())


def pictures_in(given: Any) -> list[Any]:
    """The single pictures in what was given, in order: of views, of a batch, of a sequence of any of these."""
    if is_picture(given):
        return [given]
    views = getattr(given, "pictures", None)
    if views is not None:
        return list(_in_range(views, given))
    return [picture for each in _items(given) for picture in pictures_in(each)]


def objects_in(given: Any) -> list[list[Any]]:
    """The pictures of each object: views, a batch or a sequence of pictures are one object's, several are not."""
    several = not is_picture(given) and not hasattr(given, "pictures") and not all(map(is_picture, _items(given)))
    return [pictures_in(each) for each in given] if several else [pictures_in(given)]


def is_picture(given: Any) -> bool:
    """Whether this is one picture."""
    return isinstance(given, Image.Image | str | os.PathLike) or getattr(given, "ndim", 0) == 3


def as_uint8(picture: Any) -> np.ndarray:
    """uint8 (H, W, 3), RGB, of one picture. Raises ValueError in one line for what is none."""
    if isinstance(picture, str | os.PathLike):
        picture = _read(picture)
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    if array.ndim == 3 and array.shape[0] == 3 and array.dtype.kind == "f":
        if not (array.min(initial=0) >= 0 and array.max(initial=0) <= 1):  # also where one is NaN
            raise ValueError(f"a picture is {_KINDS}: values of this one are outside 0 to 1")
        return np.rint(array.transpose(1, 2, 0) * 255).astype(np.uint8)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"a picture is {_KINDS}, not {array.dtype} {array.shape}")
    return array


def _items(given: Any) -> list[Any]:
    """What a batch or sequence holds. Raises ValueError where it holds no picture."""
    if getattr(given, "ndim", 4) < 3 or not hasattr(given, "__iter__"):
        shape = tuple(getattr(given, "shape", ()))
        raise ValueError(f"a picture is {_KINDS}, not {type(given).__name__}{f' {shape}' if shape else ''}")
    items = list(given)
    if not items:
        raise ValueError("no picture is given")
    return items


def _in_range(pictures: np.ndarray, views: Any) -> np.ndarray:
    """Drawn pictures in 0 to 1; those of world depth are shares of the camera's range, as in training."""
    return pictures if pictures.max(initial=0) <= 1 else pictures / np.float32(views.cameras[0].far)


def _read(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"{os.fspath(path)}: no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow's readers raise
        raise ValueError(f"{os.fspath(path)}: no picture, or a damaged one") from None


def stacked(pictures: list[Tensor]) -> Tensor:
    """(B, 3, S, S) of prepared pictures, as a plain tensor."""
    return torch.stack([picture.as_subclass(Tensor) for picture in pictures])
