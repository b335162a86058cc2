"""Selects objects and classes of a build, so that the subsets of the paper's tables need no builds of their own.

A subset is found from the names and classes in OUT/assets.jsonl, which is read only where a subset is asked for.
Choosing training objects by class uses their classes once, as a dataset of fewer classes would; no label reaches a
batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from manifests import store
from manifests.config import unknown_name
from manifests.dataset_info import default_prompt_name, load_table, table_names
from manifests.errors import Refused
from manifests.layout import ASSETS, BuildManifest
from manifests.records import parse_assets
from training.settings.data import MVCNN

NO_CLASSES = "names no class to be right about: `predict --classes A,B` and `embed` ask a checkpoint without"
FIRST = {"train": 80, "test": 20}  # objects of each class in MVCNN's 12-view pictures (modelnet40v1)


@dataclass(frozen=True)
class Subset:
    """Objects of a split and candidate classes.

    keys: of the objects, None for all. manifest: the build's, with the candidate classes alone. labels: for each class
    of the build its number among the candidates, or None if it is not a candidate.
    """

    keys: frozenset[str] | None
    manifest: BuildManifest
    labels: tuple[int | None, ...]


def subset_of(
    out: str,
    manifest: BuildManifest,
    split: str,
    classes: str | tuple[str, ...],
    candidates: Literal["subset", "all"],
    objects: str,
) -> Subset:
    """The subset that the keys `data.classes`, `data.candidates` and `data.objects` name.

    Raises Refused naming the key when the dataset has no such subset or class, or a list cannot be read.
    """
    if classes and not manifest.classes and not isinstance(classes, str):  # plain files: the names are candidates alone
        named = {"classes": classes, "prompt_names": tuple(map(default_prompt_name, classes))}
        keys = _keys(out, split, frozenset(), objects) if objects else None
        return Subset(keys, manifest.model_copy(update=named), ())
    names = class_names(manifest, classes)
    keys = _keys(out, split, frozenset(names), objects) if objects or names else None
    if not names or candidates == "all":
        return Subset(keys, manifest, tuple(range(len(manifest.classes))))
    kept = [number for number, name in enumerate(manifest.classes) if name in names]
    narrowed = {
        "classes": tuple(manifest.classes[number] for number in kept),
        "prompt_names": tuple(manifest.prompt_names[number] for number in kept),
    }
    labels = tuple(kept.index(number) if number in kept else None for number in range(len(manifest.classes)))
    return Subset(keys, manifest.model_copy(update=narrowed), labels)


def class_names(manifest: BuildManifest, classes: str | tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a named subset of the build's dataset, or a list of classes; () for all."""
    if not classes:
        return ()
    if not manifest.classes:
        raise Refused(f"data.classes={classes}: the build {NO_CLASSES}")
    if isinstance(classes, str):
        known = load_table(manifest.dataset).subsets if manifest.dataset in table_names() else {}
        if classes not in known:
            raise unknown_name(f"data.classes of {manifest.dataset}", classes, sorted(known) or ["a list of classes"])
        classes = known[classes]
    strange = [name for name in classes if name not in manifest.classes]
    if strange:
        raise unknown_name("class in data.classes", strange[0], manifest.classes)
    return classes


def _keys(out: str, split: str, names: frozenset[str], objects: str) -> frozenset[str]:
    """Keys of the split's objects in these classes (all if empty) and in the division or list `objects`."""
    path = store.join(out, ASSETS)
    listed = _listed(objects) if objects and objects != MVCNN else None
    taken: Counter[str | None] = Counter()
    keys = []
    for key, identity, class_name in sorted(_assets(path, split), key=lambda asset: (asset[2] or "", asset[1])):
        taken[class_name] += 1
        if names and class_name not in names:
            continue
        if listed is not None and not listed & {key, identity}:
            continue
        if objects == MVCNN and taken[class_name] > FIRST.get(split, taken[class_name]):
            continue
        keys.append(key)
    return frozenset(keys)


def classes_of(out: str, split: str) -> dict[str, str | None]:
    """The class of each object of a split, by key. Raises Refused where the build does not say."""
    return {key: name for key, _, name in _assets(store.join(out, ASSETS), split)}


def _assets(path: str, split: str) -> list[tuple[str, str, str | None]]:
    """(key, id, class) of the split's objects. Raises Refused naming the file when it is missing or damaged."""
    try:
        data = store.read_bytes(path)
    except ValueError as error:
        raise Refused(str(error)) from error
    if data is None:
        raise Refused(
            f"{path} is missing, and data.classes, data.objects, data.fraction and data.shots need it: run the build "
            "again"
        )
    try:
        return [(asset.key, asset.id, asset.class_name) for asset in parse_assets(data) if asset.split == split]
    except ValueError as error:
        raise Refused(f"{path} is damaged: {error}") from error


def _listed(path: str) -> frozenset[str]:
    """Keys or ids of objects, one in each line of a file. Raises Refused where it cannot be read."""
    try:
        lines = (line.strip() for line in store.read_text(path).splitlines())
        return frozenset(line for line in lines if line and not line.startswith("#"))
    except (OSError, ValueError) as error:
        raise Refused(f"data.objects={path} is neither {MVCNN} nor a list of ids, one a line: {error}") from error
