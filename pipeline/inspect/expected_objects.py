"""Which objects each shard of a build should hold, from its list of assets and its recipe; sixteen bytes an object."""

from __future__ import annotations

import hashlib
import json
from array import array

import numpy as np

from manifests import store
from manifests.layout import ASSETS, BuildManifest
from manifests.records import Record
from manifests.rng import seed_digest


class ExpectedObjects:
    """The objects of every shard, in order: by `hash`, since the names of millions would fill the memory."""

    def __init__(self, seed: int, shard_size: int) -> None:
        self._seed, self._shard_size = seed, shard_size
        self._digests: dict[str, bytearray] = {}
        self._rows: dict[str, array[int]] = {}
        self._ordered: dict[str, np.ndarray] = {}

    def add(self, split: str, key: str, id: str, class_name: str | None, source: str) -> None:
        """One asset of the list."""
        self._digests.setdefault(split, bytearray()).extend(seed_digest(self._seed, key))
        self._rows.setdefault(split, array("q")).extend((hash(key), row_hash(split, id, class_name, source)))

    def of_shard(self, split: str, shard: int) -> dict[int, int]:
        """`hash` of each key of a shard, in order -> `row_hash` of its object."""
        if split not in self._ordered:
            digests = np.frombuffer(self._digests.pop(split, b""), ">u8").reshape(-1, 4)
            rows = np.frombuffer(self._rows.pop(split, array("q")), np.int64).reshape(-1, 2)
            self._ordered[split] = rows[np.lexsort(digests.T[::-1])]
        return dict(self._ordered[split][shard * self._shard_size :][: self._shard_size].tolist())


def row_hash(split: str, id: str, class_name: str | None, source: str) -> int:
    """What an object is beside its key; the same within one process."""
    return hash((split, id, class_name, source))


def first_odd(record: Record, objects: dict[int, int]) -> str | None:
    """What is wrong with the keys of a record of shapes; None where they and its failures are a shard's objects."""
    failed = {failure.key for failure in record.failures}
    strangers = sorted(key for key in {*record.keys, *failed} if hash(key) not in objects)
    if strangers:
        return strangers[0]
    left = objects.keys() - {hash(key) for key in failed}
    same = [hash(key) for key in record.keys] == [key for key in objects if key in left]
    return None if same else "one is missing, or they are in another order"


def expected_objects(out: str, manifest: BuildManifest) -> ExpectedObjects:
    """The objects of a build. Raises ValueError, naming the file, where its list is missing or damaged."""
    path = store.join(out, ASSETS)
    data = store.read_bytes(path)
    if data is None:
        raise ValueError(f"{path}: missing; run the build again")
    if hashlib.sha256(data).hexdigest() != manifest.assets_hash:
        raise ValueError(f"{path}: damaged (sha256 differs); delete {out}/manifest.json and run the build again")
    seed, shard_size = (manifest.recipe.get(name) for name in ("seed", "shard_size"))
    if not isinstance(seed, int) or not isinstance(shard_size, int) or shard_size < 1:
        raise ValueError(f"{out}/manifest.json: its recipe has no seed or no shard_size")
    found = ExpectedObjects(seed, shard_size)
    try:
        for line in data.splitlines():
            found.add(*json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__})") from error
    return found
