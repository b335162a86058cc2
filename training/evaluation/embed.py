"""Writes the features of every object of a split as one file of arrays, and draws them in the plane.

Shape letters: N objects, V views, E embedding.
"""

from __future__ import annotations

import importlib.util
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from manifests import store
from manifests.config import Value
from manifests.errors import Refused
from manifests.plain_text import number_of
from manifests.rng import seed_digest
from training import distributed
from training.data.dataset import open_source
from training.data.labels import labelled
from training.data.whole_split import BATCH, batch_numbers
from training.evaluation.evaluate import settings_of
from training.evaluation.features import features_of, gathered, gathered_keys, require_finite
from training.models.clip import pixel_statistics
from training.plots.scatter import scatter_picture
from training.settings.model import Precision
from training.weights.checkpoint import Checkpoint
from training.weights.open_models import open_models, warn_of_own_heads

Method = Literal["tsne", "umap"]
NAMES: dict[Method, str] = {"tsne": "t-SNE", "umap": "UMAP"}
LIBRARIES = {"tsne": ("sklearn", "scikit-learn"), "umap": ("umap", "umap-learn")}
DRAWN = 3000  # objects in a picture at most
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Embedding:
    """The features of a split by one model.

    image: float32 (N, E), the mean of the unit features of an object's views (of length 1 at most), of method=multiview
    the largest of the tower's own; points: float32 (N, E), unit features, of a network with a head of its own the
    features that this head reads; either without rows where the run trains no such tower. num_views: int64 (N,). label:
    int64 (N,), a number among `classes`, -1 where unknown. views: float32 (N, V, E), the features of each view, zero
    beyond an object's views; None unless asked for. about: what was embedded (dataset, split, who, step, precision).
    """

    keys: tuple[str, ...]
    image: np.ndarray
    points: np.ndarray
    num_views: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]
    views: np.ndarray | None
    about: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by name; texts are fixed-width Unicode, so that nothing is pickled."""
        found = {"keys": _texts(self.keys), "image": self.image, "points": self.points, "num_views": self.num_views}
        found |= {"label": self.label, "classes": _texts(self.classes)}
        if self.views is not None:
            found["views"] = self.views
        return found | {name: np.array(value) for name, value in self.about.items()}


@torch.inference_mode()
def embed(
    checkpoint: Checkpoint,
    shards: str,
    split: str = "test",
    who: str = "student",
    device: torch.device | None = None,
    per_view: bool = False,
    workers: int | None = None,
    changes: dict[str, Value] | None = None,
    precision: Precision | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedding:
    """The features of a split. precision: of the towers; None: as trained on CUDA, fp32 on the CPU.

    Raises Refused as `evaluate` does, and when there is no such model.
    """
    device = device or torch.device("cpu")
    with distributed.together():
        settings = settings_of(checkpoint, split, changes or {})
        pictures, clouds = (name in checkpoint.recipe.towers for name in ("image", "points"))
        source = open_source(shards, settings, tower=pixel_statistics(checkpoint.recipe), pictures=pictures)
        if not source.total:
            raise Refused(f"{shards}: no object in {split}")
        warn_of_own_heads([checkpoint])
        opened = open_models(checkpoint, who, precision, device)
        model = opened.models[who]
        model.look_at(settings.channel)
        numbers = batch_numbers(source.total, BATCH, distributed.rank(), distributed.world())
        reader = labelled(source, settings, model.image.image_size, numbers, unknown=True)
    keys: list[str] = []
    rows: dict[str, list[Tensor]] = defaultdict(list)
    with distributed.together():
        for batch in reader.batches(settings.workers if workers is None else workers):
            features = features_of(model, batch, device)
            require_finite(batch.keys, features.views, features.points)
            found = {"image": features.whole()[: len(batch.keys) if pictures else 0]}
            found |= {"points": features.points[: len(batch.keys) if clouds else 0]}
            found |= {"num_views": torch.tensor(batch.num_views), "label": torch.tensor(batch.labels)}
            found |= {"views": features.views} if per_view else {}
            keys += batch.keys
            for name, value in found.items():
                rows[name].append(value.cpu())
            on_progress(min(len(keys) * distributed.world(), source.total), source.total)
    about = {"dataset": source.manifest.dataset, "split": split, "who": who, "step": checkpoint.step}
    about |= {"precision": opened.precision}
    width = model.image_width
    num_views = gathered(rows["num_views"], dtype=torch.int64)
    return Embedding(
        gathered_keys(keys),
        gathered(rows["image"], width).numpy(),
        gathered(rows["points"], model.points_width).numpy(),
        num_views.numpy(),
        gathered(rows["label"], dtype=torch.int64).numpy(),
        source.manifest.classes,
        gathered(rows["views"], int(num_views.max()), width).numpy() if per_view else None,
        about,
    )


def _texts(values: tuple[str, ...]) -> np.ndarray:
    return np.array(values, dtype=np.str_) if values else np.empty(0, "U1")


def require(out: str, method: Method | None) -> None:
    """Raises Refused, before any work, where OUT is no .npz file or the picture's library is missing."""
    store.absolute(out)
    if not out.endswith(".npz"):
        raise Refused(f"--out {out}: the file holds several arrays, so its name must end in .npz")
    if method is not None:
        require_library(method)


def require_library(method: Method) -> None:
    """Raises Refused where the library that makes such a plane is missing."""
    module, distribution = LIBRARIES[method]
    if importlib.util.find_spec(module) is None:
        raise Refused(f"--picture {method} needs {distribution}: pip install {distribution}")


def write(embedding: Embedding, out: str, method: Method | None = None, seed: int = 0) -> list[str]:
    """Writes OUT, which `np.load(OUT, allow_pickle=False)` reads, and the picture beside it, OUT with .<method>.png.

    Gives their paths. Raises Refused where they cannot be written.
    """
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **embedding.arrays())
    files = {out: file.getvalue()}
    if method is not None:
        files[f"{out.removesuffix('.npz')}.{method}.png"] = picture(embedding, method, seed)
    for path, data in files.items():
        try:
            store.write_bytes(store.absolute(path), data)
        except OSError as error:
            raise Refused(f"{path} cannot be written: {error.strerror or error}") from error
    return list(files)


def picture(embedding: Embedding, method: Method, seed: int = 0) -> bytes:
    """PNG: both modalities of up to DRAWN objects in one plane, where near is similar (cosine), coloured by class."""
    drawn, counted = some_of(embedding.keys, seed)
    image, points = (each[drawn] if len(each) else each for each in (embedding.image, embedding.points))
    features = np.concatenate([each for each in (image, points) if len(each)])
    plane = in_plane(unit_rows(features), method, seed)
    about = embedding.about
    title = f"{about['dataset']} {about['split']}, step {about['step']}, {about['who']}: {NAMES[method]} of {counted}"
    places = {"image (mean of views)": plane[: len(image)]} if len(image) else {}
    places |= {"point cloud": plane[len(image) :]} if len(points) else {}
    return scatter_picture(places, embedding.label[drawn], embedding.classes, title)


def some_of(keys: Sequence[str], seed: int) -> tuple[np.ndarray, str]:
    """The numbers of up to DRAWN objects, ascending, chosen by the seed; and how many of how many, in words."""
    order = sorted(range(len(keys)), key=lambda number: seed_digest(seed, keys[number]))
    drawn = np.array(sorted(order[:DRAWN]))
    counted = number_of(len(keys), "object")
    return drawn, counted if len(drawn) == len(keys) else f"{len(drawn):,} of {counted}"


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Features (M, E), each of length 1; a row of zeros stays one."""
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-9)


def in_plane(features: np.ndarray, method: Method, seed: int) -> np.ndarray:
    """Projects unit features (M, E): float (M, 2), the same for the same features, library and seed."""
    if len(features) < 5:
        raise Refused(f"--picture {method}: {number_of(len(features), 'feature')}, too few for a picture")
    if method == "umap":
        import umap

        near = min(15, len(features) - 1)
        return umap.UMAP(metric="cosine", n_neighbors=near, random_state=seed, n_jobs=1).fit_transform(features)
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
    return tsne.fit_transform(features.astype(np.float32))
