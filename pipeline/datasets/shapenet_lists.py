"""Lists that divide ShapeNet: Point-BERT's ShapeNet-55 text files, the csv of SHREC16/17, the json files of 3D-R2N2.

Ids are text throughout: a synset begins with 0, and an object's own id may hold hyphens, so that only the first `-`
divides `<synset>-<id>`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manifests import store
from manifests.errors import Refused

SPLITS = ("train", "val", "test")
_COLUMNS = ("synsetId", "modelId", "split")
_TRAIN_PORTION = 0.8  # of each category, 3D-R2N2 (the portions 0 to 0.8 and 0.8 to 1)


@dataclass(frozen=True)
class SplitList:
    """splits: id of an object -> its split. nameless: rows that have a synset and no id (ShapeNet-55 has two).

    absent: categories that a list names as a whole and that have no object here.
    """

    splits: dict[str, str]
    nameless: int = 0
    absent: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Objects of each split."""
        return dict(Counter(self.splits.values()))


def read_split_list(path: str, synsets: Container[str], ids: Iterable[str]) -> SplitList:
    """A list by its form. ids: the objects that there are, for lists that name shares of a category only.

    A folder is read as the files train.txt, val.txt and test.txt in it. Raises Refused naming the file and the row.
    """
    file = Path(path)
    files = [f for f in (file / f"{split}.txt" for split in SPLITS) if f.is_file()] if file.is_dir() else [file]
    if not files:
        raise Refused(f"split_list={path}: no train.txt, val.txt or test.txt in it")
    splits: dict[str, str] = {}
    nameless, absent = 0, []
    for one in files:
        for row, synset, model, split in _rows(one, list(ids)):
            if synset not in synsets:
                raise Refused(f"split_list={one}: {row}: {synset!r} is no synset of this dataset")
            if split not in SPLITS:
                raise Refused(f"split_list={one}: {row}: the split {split!r} is not one of {', '.join(SPLITS)}")
            if not model and one.suffix.lower() == ".json":
                absent.append(synset)
            elif not model:
                nameless += 1
            else:
                splits.setdefault(f"{synset}-{model}", split)
    if not splits and not absent:
        raise Refused(f"split_list={path}: no object in it")
    return SplitList(splits, nameless, tuple(absent))


def _rows(file: Path, ids: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """(where, synset, id, split) of every row of a file."""
    try:
        text = store.read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"split_list={file} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    suffix = file.suffix.lower()
    if suffix == ".csv":
        return _csv_rows(file, text)
    if suffix == ".json":
        return _json_rows(file, text, ids)
    return _text_rows(file, text)


def _text_rows(file: Path, text: str) -> Iterator[tuple[str, str, str, str]]:
    """`<synset>-<id>.npy` in each line; the split is in the file's name."""
    split = re.search("|".join(SPLITS), file.stem.lower())
    if split is None:
        raise Refused(f"split_list={file}: train, val or test must be in its name, or give the folder of all lists")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            synset, _, model = line.strip().partition("-")
            yield f"row {number}", synset, model.removesuffix(".npy"), split[0]


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, str, str, str]]:
    """The columns id, synsetId, subSynsetId, modelId, split. A synset that lost its leading zero gets it back."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise Refused(f"split_list={file}: no column {missing[0]}; needed: {', '.join(_COLUMNS)}")
    for row in rows:
        synset, model, split = ((row[name] or "").strip() for name in _COLUMNS)
        yield f"row {rows.line_num}", synset.zfill(8), model, split


def _json_rows(file: Path, text: str, ids: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """{split: {synset: ids, or id -> views}} (PyTorch3D's), or {name: {"id": synset}} (3D-R2N2's own).

    The second names categories: the first 80 % of their objects, by id, are `train`, the others `test`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"split_list={file}: not JSON ({type(error).__name__})") from error
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise Refused(f"split_list={file}: not an object of objects")
    if set(values) <= set(SPLITS):
        for split in (name for name in SPLITS if name in values):
            for synset, models in values[split].items():
                if not isinstance(models, (dict, list)):
                    raise Refused(f"split_list={file}: {split}.{synset} is neither a list of ids nor an object of them")
                for model in models:
                    yield f"{split}.{synset}", synset, str(model), split
        return
    for name, category in values.items():
        synset = str(category.get("id", name))
        models = sorted(id.partition("-")[2] for id in ids if id.startswith(f"{synset}-"))
        cut = int(len(models) * _TRAIN_PORTION)
        if not models:
            yield name, synset, "", "train"
        for number, model in enumerate(models):
            yield name, synset, model, "train" if number < cut else "test"
