"""Whether a build is right: every byte against its record, every record against the manifest, every sample's form.

Each tar is read once, and hashed block by block while a block is still in the processor's cache. Every json, cloud and
camera is judged; a picture's bytes are those of the record, and its size, kind and end are read from its own headers.
With `deep` every picture is decoded as well, which takes ten times as long.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import from_json

from manifests import store
from manifests.dataset_info import load_table, table_names
from manifests.layout import (
    ASSETS,
    BuildManifest,
    ViewSetManifest,
    meshes_tar,
    read_view_set,
    require_manifest,
    shapes_tar,
    view_set_names,
    views_tar,
)
from manifests.records import Failure, Record, read_record, record_path
from manifests.samples import (
    COLORS,
    FORMAT,
    JSON,
    MESH,
    PARTS,
    POINTS,
    Sample,
    decode_array,
    decode_picture,
    read_samples,
    split_view_member,
)
from pipeline.formats.image_header import PictureHead, read_head
from pipeline.inspect.expected_objects import ExpectedObjects, expected_objects, first_odd, row_hash

_ODD = (KeyError, TypeError, AttributeError)  # what JSON of another form than ours gives
_ROOM, _BLOCK = 8 << 20, 256 << 10
_MOST_PROBLEMS = 10_000  # a manifest may announce a million shards that are not there
_KINDS = {"depth": (1, 16), "gray": (1, 8)}  # channel -> (channels, bits) of its pictures


@dataclass
class Findings:
    """What `check` found. problems: damage, one line each, naming the file. failures: of assets; view_failures: of
    objects in a view set, by its name. gates: of each view set the smallest, mean and largest coverage and the smallest
    mask_iou. hashes: of the shapes, of the asset list and of each view set. keys: of each split, all different."""

    complete: bool = False
    samples: int = 0
    failures: list[Failure] = field(default_factory=list)
    expected_failures: int = 0  # of them: objects that the dataset's table knows to be broken
    view_sets: dict[str, dict[str, int]] = field(default_factory=dict)
    view_failures: dict[str, list[Failure]] = field(default_factory=dict)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: Counter[str] = field(default_factory=Counter)
    gates: dict[str, dict[str, float]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    damaged: dict[str, None] = field(default_factory=dict)  # the tars among them (or their records), in order
    bytes: int = 0  # of all tars that were read

    def blame(self, tar: str, problem: str) -> None:
        """Notes a problem of one tar or its record."""
        self.problems.append(problem)
        self.damaged[tar] = None

    def to_json(self) -> dict[str, Any]:
        """The object that `check --json` prints."""
        return {
            "ok": not self.problems,
            "complete": self.complete,
            "samples": self.samples,
            "failures": [vars(failure) for failure in self.failures],
            "view_sets": self.view_sets,
            "classes": {split: dict(sorted(counts.items())) for split, counts in self.classes.items()},
            "warnings": dict(sorted(self.warnings.items())),
            "gates": self.gates,
            "hashes": self.hashes,
            "keys": self.keys,
            "problems": self.problems,
        }


OnTar = Callable[[str], None]


def check(out: str, on_tar: OnTar = lambda tar: None, deep: bool = False) -> Findings:
    """Reads every byte of a build. Raises Refused when OUT is no build.

    on_tar: told each tar before it is read. deep: decodes every picture too, not only its headers.
    """
    out = store.absolute(out)
    manifest = require_manifest(out, out)
    found = Findings(complete=manifest.complete)
    reading = _Reading(found, on_tar, deep)
    if not manifest.complete:
        found.problems.append(f"{out}/manifest.json: the build is not finished; run it again")
    sets = _view_sets(out, manifest, found)
    expected = _expected(out, manifest, found)
    found.view_sets = {name: {"samples": 0, "failures": 0, "skipped": 0} for name in sets}
    found.hashes = {"shapes": manifest.shapes_hash, "assets": manifest.assets_hash}
    found.hashes |= {f"views/{name}": view_set.hash for name, view_set in sets.items()}
    seen = array("q")  # hashes: the keys of millions of objects would fill the memory
    for split, shards in manifest.num_shards.items():
        for shard in range(shards):
            if len(found.problems) > _MOST_PROBLEMS:
                found.problems.append(f"{split}-{shard:05d} and the shards after it were not looked at")
                break
            objects = None if expected is None else expected.of_shard(split, shard)
            keys = _check_shard(out, manifest, sets, split, shard, objects, reading)
            found.keys[split] = found.keys.get(split, 0) + len(keys)
            seen.extend(map(hash, keys))
    times = _repeated(out, manifest, seen)
    found.problems += [f"{out}: the key {key} comes {n} times" for key, n in sorted(times.items())]
    found.gates = {name: _summed(reading.gates.get(name, [])) for name in sets}
    known = load_table(manifest.dataset).expected_failures if manifest.dataset in table_names() else {}
    found.expected_failures = sum(failure.id in known for failure in found.failures)
    return found


def _repeated(out: str, manifest: BuildManifest, seen: array[int]) -> dict[str, int]:
    """Keys that come more than once, with how often. seen: `hash` of every key."""
    values, counts = np.unique(np.frombuffer(seen, np.int64), return_counts=True)
    odd = set(values[counts > 1].tolist())
    if not odd:
        return {}
    times: Counter[str] = Counter()
    for split, shards in manifest.num_shards.items():
        for shard in range(shards):
            try:
                record = read_record(record_path(shapes_tar(out, split, shard)))
            except ValueError:
                continue  # told of already
            times.update(key for key in (record.keys if record else ()) if hash(key) in odd)
    return {key: n for key, n in times.items() if n > 1}


def _summed(rows: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """The gates of all views from those of each record, weighted by its objects."""
    sums: dict[str, float] = {}
    for key in sorted({key for _, gates in rows for key in gates}):
        values = [(count, gates[key]) for count, gates in rows if key in gates]
        if key.endswith("_mean"):
            sums[key] = round(sum(n * v for n, v in values) / max(1, sum(n for n, _ in values)), 6)
        else:
            sums[key] = (max if key.endswith("_max") else min)(v for _, v in values)
    return sums


def _view_sets(out: str, manifest: BuildManifest, found: Findings) -> dict[str, ViewSetManifest]:
    sets = {}
    for name in view_set_names(out):
        try:
            view_set = read_view_set(out, name)
        except ValueError as error:
            found.problems.append(str(error))
            continue
        if view_set is not None and view_set.shapes_hash != manifest.shapes_hash:
            found.problems.append(f"{out}/views/{name}/manifest.json: drawn from other shapes")
        elif view_set is not None:
            sets[name] = view_set
    return sets


def _expected(out: str, manifest: BuildManifest, found: Findings) -> ExpectedObjects | None:
    """Which objects each shard should hold, None where the build does not tell, with the problem noted."""
    try:
        return expected_objects(out, manifest)
    except ValueError as error:
        found.problems.append(str(error))
        return None


def _check_shard(
    out: str,
    manifest: BuildManifest,
    sets: dict[str, ViewSetManifest],
    split: str,
    shard: int,
    objects: dict[int, int] | None,
    reading: _Reading,
) -> tuple[str, ...]:
    """Checks one shard's tars; the keys of its shapes. objects: that it should hold (`ExpectedObjects.of_shard`)."""
    found = reading.found
    shapes, with_faces = _check_shapes(shapes_tar(out, split, shard), manifest, split, objects, reading)
    keys = () if shapes is None else shapes.keys
    if manifest.recipe.get("store_meshes", True):
        tar = meshes_tar(out, split, shard)
        meshes = reading.verified(tar, manifest.shapes_hash)
        if meshes is not None and shapes is not None:
            _same_keys(tar, meshes[0].keys, tuple(k for k in keys if k in with_faces), found)
            for sample in meshes[1]:
                if MESH not in sample.members:
                    found.blame(tar, f"{tar}: {sample.key}: no {MESH}")
    for name, view_set in sets.items():
        tar = views_tar(out, name, split, shard)
        record = _check_views(tar, view_set, reading)
        if record is not None and shapes is not None:
            left_out = {f.key for f in record.failures} | {s.key for s in record.skipped}
            _same_keys(tar, record.keys, tuple(k for k in keys if k not in left_out), found)
            strangers = left_out - set(keys) - {f.key for f in shapes.failures}
            if strangers:
                found.blame(tar, f"{tar}: leaves out {min(strangers)}, which is none of the shapes: of another shard")
    return keys


def _check_shapes(
    tar: str, manifest: BuildManifest, split: str, objects: dict[int, int] | None, reading: _Reading
) -> tuple[Record | None, frozenset[str]]:
    """Checks a tar of shapes; its record where it is right, and the keys of objects that have faces."""
    found, shapes = reading.found, reading.verified(tar, manifest.shapes_hash)
    if shapes is None:
        return None, frozenset()
    record, samples = shapes
    odd = None if objects is None else first_odd(record, objects)
    if odd is not None:
        found.blame(tar, f"{tar}: its objects are not those of this shard ({odd}): of another shard or build")
        return None, frozenset()
    found.samples += record.count
    found.failures += record.failures
    counts = found.classes.setdefault(split, Counter())
    with_faces = set()
    for sample in samples:
        try:
            values = _shape_values(sample, manifest)
            warnings = _warnings(values["warnings"])
            row = row_hash(*(values[name] for name in ("split", "id", "class", "source")))
            if objects is not None and row != objects.get(hash(sample.key), row):
                raise ValueError(f"its id, split, class or source are not those of {ASSETS}")
        except (ValueError, *_ODD) as error:
            found.blame(tar, f"{tar}: {sample.key}: {_worded(error)}")
            continue
        counts[values["class"] or ""] += 1
        found.warnings.update(warnings)
        if values["num_faces"]:
            with_faces.add(sample.key)
    return record, frozenset(with_faces)


def _check_views(tar: str, view_set: ViewSetManifest, reading: _Reading) -> Record | None:
    """Checks a tar of views; its record where it is right."""
    found, views = reading.found, reading.verified(tar, view_set.hash)
    if views is None:
        return None
    record, samples = views
    sums = found.view_sets[view_set.name]
    sums["samples"] += record.count
    sums["failures"] += len(record.failures)
    sums["skipped"] += len(record.skipped)
    found.view_failures.setdefault(view_set.name, []).extend(record.failures)
    for sample in samples:
        try:
            values = _view_values(sample, view_set, reading.deep)
            found.warnings.update(_warnings(values.get("warnings", [])))
        except (ValueError, *_ODD) as error:
            found.blame(tar, f"{tar}: {sample.key}: {_worded(error)}")
    if record.gates:
        reading.gates.setdefault(view_set.name, []).append((record.count, record.gates))
    return record


def _warnings(rows: Any) -> dict[str, int]:
    """type -> count of the warnings of a sample. Raises ValueError when they are none."""
    counts = {w["type"]: w["count"] for w in rows}
    if not all(isinstance(kind, str) and isinstance(count, int) for kind, count in counts.items()):
        raise ValueError("its warnings are no types with counts")
    return counts


def _worded(error: Exception) -> str:
    return f"unreadable ({error!r})" if isinstance(error, _ODD) else str(error)


def _same_keys(tar: str, there: tuple[str, ...], expected: tuple[str, ...], found: Findings) -> None:
    if there != expected:
        odd = sorted(set(there) ^ set(expected))
        found.blame(tar, f"{tar}: keys are not those of the shapes ({odd[0] if odd else 'another order'})")


class _Reading:
    """One run over a build: what was found, and the room that every tar is read into."""

    def __init__(self, found: Findings, on_tar: OnTar, deep: bool) -> None:
        self.found, self.deep = found, deep
        self.gates: dict[str, list[tuple[int, dict[str, float]]]] = {}  # of each view set, (objects, gates) a record
        self._on_tar = on_tar
        self._room = bytearray(_ROOM)  # used again: fresh memory for each tar costs as much as hashing it

    def verified(self, tar: str, hash: str) -> tuple[Record, Iterator[Sample]] | None:
        """A tar's record and samples, when its bytes are those of the record; else None, with the problem noted."""
        self._on_tar(tar)
        try:
            record = read_record(record_path(tar))
            if record is None:
                if self.found.complete:
                    raise ValueError(f"{tar}: no record beside it; run the build again")
                return None
            if record.hash != hash:
                raise ValueError(f"{tar}: made with other settings than the manifest says")
            return record, self._samples(tar, record)
        except ValueError as error:
            self.found.blame(tar, str(error))
            return None

    def _samples(self, tar: str, record: Record) -> Iterator[Sample]:
        """The samples of a tar with the record's bytes, one at a time; what is wrong with the tar is noted on the way.

        They are to be used up before the next tar is read.
        """
        data, sha256 = self._read(tar)
        if len(data) != record.bytes or sha256 != record.sha256:
            raise ValueError(f"{tar}: damaged (sha256 differs); delete its record and run the build again")
        return self._parsed(tar, record, data)

    def _parsed(self, tar: str, record: Record, data: memoryview) -> Iterator[Sample]:
        keys, offsets, sizes, checks = [], [], [], []
        try:
            for offset, sample in read_samples(_Memory(data)):
                keys.append(sample.key)
                offsets.append(offset)
                sizes.append({suffix: len(member) for suffix, member in sample.members.items()})
                checks.append({s: zlib.crc32(m) for s, m in sample.members.items()} if record.checks else {})
                yield sample
        except ValueError as error:
            self.found.blame(tar, f"{tar}: {error}")
            return
        if tuple(keys) != record.keys or tuple(offsets) != record.offsets:
            self.found.blame(tar, f"{tar}: its keys or offsets are not those of its record")
        for name, there, said in (("sizes", sizes, record.sizes), ("crc32", checks, record.checks)):
            if said and {s: tuple(m.get(s) for m in there) for s in set().union(*there)} != said:
                self.found.blame(tar, f"{tar}: its members' {name} are not those of its record")

    def _read(self, tar: str) -> tuple[memoryview, str]:
        """(all bytes of a tar, their sha256). Raises ValueError where it is missing."""
        sha256, end = hashlib.sha256(), 0
        try:
            with store.open_reading(tar) as file:
                while True:
                    if end == len(self._room):
                        self._room = self._room + bytes(len(self._room))
                    with memoryview(self._room) as room:
                        count = file.readinto(room[end : end + _BLOCK])
                        sha256.update(room[end : end + count])
                    if not count:
                        break
                    end += count
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{tar}: missing; delete its record and run the build again") from error
        except OSError as error:
            raise ValueError(f"{tar}: cannot be read ({error.strerror})") from error
        self.found.bytes += end
        return memoryview(self._room).toreadonly()[:end], sha256.hexdigest()


class _Memory(io.RawIOBase):
    """A file over bytes in memory; they are copied as they are read."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._place = data, 0

    def read(self, size: int = -1) -> bytes:
        part = self._data[self._place :] if size < 0 else self._data[self._place : self._place + size]
        self._place += len(part)
        return bytes(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (self._place if whence == io.SEEK_CUR else 0)
        return self._place


def _shape_values(sample: Sample, manifest: BuildManifest) -> dict[str, Any]:
    """The json of one sample of a tar of shapes. Raises ValueError saying what is wrong with the sample."""
    try:
        values, points = from_json(sample.members[JSON]), decode_array(sample.members[POINTS])
    except (KeyError, ValueError) as error:
        raise ValueError(f"unreadable ({error})") from error
    if values.get("format") != FORMAT or values.get("key") != sample.key:
        raise ValueError("its json is of another format or key")
    if points.dtype != np.float32 or points.shape != (values["num_points"], 3) or not np.isfinite(points).all():
        raise ValueError(f"points are {points.dtype} {points.shape}")
    label, texts = values["label"], [values[name] for name in ("id", "split", "source", "class")]
    if not all(isinstance(text, str) for text in texts if text is not None) or None in texts[:3]:
        raise ValueError("its id, split, source or class is no text")
    if label is not None and (not 0 <= label < len(manifest.classes) or manifest.classes[label] != values["class"]):
        raise ValueError(f"label {label} is not class {values['class']}")
    for suffix, width in ((COLORS, (3,)), (PARTS, ())):
        if suffix in sample.members:
            array = decode_array(sample.members[suffix])
            if array.dtype != np.uint8 or array.shape != (len(points), *width):
                raise ValueError(f"{suffix} is {array.dtype} {array.shape}")
    return values


def _view_values(sample: Sample, view_set: ViewSetManifest, deep: bool) -> dict[str, Any]:
    """The json of one sample of a tar of views. Raises ValueError saying what is wrong with the sample."""
    try:
        values = from_json(sample.members[JSON])  # cameras are many numbers: half the time of json.loads
        views = values["views"]
        pictures = {s: split_view_member(s) for s in sample.members if s != JSON}
        whole = {p[0] for p in pictures.values() if p} == set(range(len(views)))
        expected = view_set.preset.num_views
        fewer = view_set.preset.reads == "frames" and 0 < len(views) < expected
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"unreadable ({error})") from error
    if values.get("key") != sample.key or values.get("preset") != view_set.name:
        raise ValueError(f"its json is of the key {values.get('key')} and the view set {values.get('preset')}")
    if (len(views) != expected and not fewer) or not whole:
        raise ValueError(f"{len(views)} views, the preset has {expected}")
    for suffix, place in pictures.items():
        try:
            view, channel = place
            size = (views[view]["width"], views[view]["height"])
            head = _head(sample.members[suffix], deep)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"unreadable ({suffix}: {error})") from error
        if head[:2] != size:
            raise ValueError(f"{suffix} is {head[:2]}, its camera {size} (width, height)")
        if head[2:] != _KINDS.get(channel, head[2:]):
            raise ValueError(f"{suffix} has {head.channels} channels of {head.bits} bits")
    return values


def _head(data: bytes, deep: bool) -> PictureHead:
    """Size and kind of a picture, from its headers where they tell. Raises ValueError where it is damaged."""
    head = None if deep else read_head(data)
    if head is None:
        picture = decode_picture(data)
        channels = 1 if picture.ndim == 2 else picture.shape[2]
        head = PictureHead(picture.shape[1], picture.shape[0], channels, 8 * picture.dtype.itemsize)
    return head
