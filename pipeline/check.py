"""Whether a build is right: every byte against its record, every record against the manifest, every sample's form."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from manifests import store
from manifests.presets import is_frames_preset
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
    depth_of_codes,
    read_samples,
    split_view_member,
)
from manifests.shards import (
    BuildManifest,
    ViewSetManifest,
    meshes_tar,
    read_view_set,
    require_manifest,
    shapes_tar,
    view_set_names,
    views_tar,
)
from manifests.tables import load_table, table_names

GRAY_TOLERANCE = 1.0  # of 255, between machines
LENGTH_TOLERANCE = 1e-6


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


def check(out: str, on_tar: Callable[[str], None] = lambda tar: None) -> Findings:
    """Reads every byte of a build. on_tar: told each tar before it is read. Raises Refused when OUT is no build."""
    out = store.absolute(out)
    manifest = require_manifest(out, out)
    found = Findings(complete=manifest.complete)
    if not manifest.complete:
        found.problems.append(f"{out}/manifest.json: the build is not finished; run it again")
    sets = _view_sets(out, manifest, found)
    found.view_sets = {name: {"samples": 0, "failures": 0, "skipped": 0} for name in sets}
    found.hashes = {"shapes": manifest.shapes_hash, "assets": manifest.assets_hash}
    found.hashes |= {f"views/{name}": view_set.hash for name, view_set in sets.items()}
    seen: Counter[str] = Counter()
    for split, shards in manifest.num_shards.items():
        for shard in range(shards):
            keys = _check_shard(out, manifest, sets, split, shard, found, on_tar)
            found.keys[split] = found.keys.get(split, 0) + len(keys)
            seen.update(keys)
    found.problems += [f"{out}: the key {key} comes {n} times" for key, n in sorted(seen.items()) if n > 1]
    _sum_gates(out, manifest, found)
    known = load_table(manifest.dataset).expected_failures if manifest.dataset in table_names() else {}
    found.expected_failures = sum(failure.id in known for failure in found.failures)
    return found


def _sum_gates(out: str, manifest: BuildManifest, found: Findings) -> None:
    """Sums the records' gates up; records that are damaged are problems already."""
    for name in found.view_sets:
        rows = []
        for split, shards in manifest.num_shards.items():
            for shard in range(shards):
                try:
                    record = read_record(record_path(views_tar(out, name, split, shard)))
                except ValueError:
                    continue
                if record is not None and record.gates:
                    rows.append((record.count, record.gates))
        found.gates[name] = _summed(rows)


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


def _check_shard(
    out: str,
    manifest: BuildManifest,
    sets: dict[str, ViewSetManifest],
    split: str,
    shard: int,
    found: Findings,
    on_tar: Callable[[str], None],
) -> tuple[str, ...]:
    """Checks one shard's tars; the keys of its shapes."""
    tar = shapes_tar(out, split, shard)
    on_tar(tar)
    shapes = _verified(tar, manifest.shapes_hash, found)
    keys: tuple[str, ...] = ()
    with_faces: set[str] = set()
    if shapes is not None:
        record, samples = shapes
        keys = record.keys
        found.samples += record.count
        found.failures += record.failures
        counts = found.classes.setdefault(split, Counter())
        for sample in samples:
            problem = _shape_problem(sample, manifest)
            if problem:
                found.problems.append(f"{tar}: {sample.key}: {problem}")
                continue
            values = sample.json
            counts[values["class"] or ""] += 1
            found.warnings.update({w["type"]: w["count"] for w in values["warnings"]})
            if values["num_faces"]:
                with_faces.add(sample.key)
    if manifest.recipe.get("store_meshes", True):
        tar = meshes_tar(out, split, shard)
        on_tar(tar)
        meshes = _verified(tar, manifest.shapes_hash, found)
        if meshes is not None and shapes is not None:
            _same_keys(tar, meshes[0].keys, tuple(k for k in keys if k in with_faces), found)
            found.problems += [f"{tar}: {s.key}: no {MESH}" for s in meshes[1] if MESH not in s.members]
    for name, view_set in sets.items():
        tar = views_tar(out, name, split, shard)
        on_tar(tar)
        views = _verified(tar, view_set.hash, found)
        if views is None:
            continue
        record, samples = views
        sums = found.view_sets[name]
        sums["samples"] += record.count
        sums["failures"] += len(record.failures)
        found.view_failures.setdefault(name, []).extend(record.failures)
        sums["skipped"] += len(record.skipped)
        left_out = {f.key for f in record.failures} | {s.key for s in record.skipped}
        if shapes is not None:
            _same_keys(tar, record.keys, tuple(k for k in keys if k not in left_out), found)
        for sample in samples:
            problem = _views_problem(sample, view_set)
            if problem:
                found.problems.append(f"{tar}: {sample.key}: {problem}")
            else:
                found.warnings.update({w["type"]: w["count"] for w in sample.json.get("warnings", [])})
    return keys


def _same_keys(tar: str, there: tuple[str, ...], expected: tuple[str, ...], found: Findings) -> None:
    if there != expected:
        odd = sorted(set(there) ^ set(expected))
        found.problems.append(f"{tar}: keys are not those of the shapes ({odd[0] if odd else 'another order'})")


def _verified(tar: str, hash: str, found: Findings) -> tuple[Record, Iterator[Sample]] | None:
    """A tar's record and samples, when its bytes are those of the record; else None, with the problem noted."""
    try:
        record = read_record(record_path(tar))
    except ValueError as error:
        found.problems.append(str(error))
        return None
    if record is None:
        if found.complete:
            found.problems.append(f"{tar}: no record beside it; run the build again")
        return None
    if record.hash != hash:
        found.problems.append(f"{tar}: made with other settings than the manifest says")
        return None
    data = store.read_bytes(tar)
    if data is None:
        found.problems.append(f"{tar}: missing; delete its record and run the build again")
        return None
    if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
        found.problems.append(f"{tar}: damaged (sha256 differs); delete its record and run the build again")
        return None
    try:
        pairs = list(read_samples(io.BytesIO(data)))
    except ValueError as error:
        found.problems.append(f"{tar}: {error}")
        return None
    if tuple(s.key for _, s in pairs) != record.keys or tuple(o for o, _ in pairs) != record.offsets:
        found.problems.append(f"{tar}: its keys or offsets are not those of its record")
        return None
    return record, (sample for _, sample in pairs)


def _shape_problem(sample: Sample, manifest: BuildManifest) -> str | None:
    """What is wrong with one sample of a tar of shapes, or None."""
    try:
        values, points = sample.json, decode_array(sample.members[POINTS])
    except (KeyError, ValueError) as error:
        return f"unreadable ({error})"
    if values.get("format") != FORMAT or values.get("key") != sample.key:
        return "its json is of another format or key"
    if points.dtype != np.float32 or points.shape != (values["num_points"], 3) or not np.isfinite(points).all():
        return f"points are {points.dtype} {points.shape}"
    label = values["label"]
    if label is not None and (not 0 <= label < len(manifest.classes) or manifest.classes[label] != values["class"]):
        return f"label {label} is not class {values['class']}"
    for suffix, width in ((COLORS, (3,)), (PARTS, ())):
        if suffix in sample.members:
            array = decode_array(sample.members[suffix])
            if array.dtype != np.uint8 or array.shape != (len(points), *width):
                return f"{suffix} is {array.dtype} {array.shape}"
    return None


def _views_problem(sample: Sample, view_set: ViewSetManifest) -> str | None:
    """What is wrong with one sample of a tar of views, or None."""
    try:
        views = sample.json["views"]
        pictures = {s: split_view_member(s) for s in sample.members if s != JSON}
        expected = view_set.preset.num_views
        fewer = is_frames_preset(view_set.preset) and 0 < len(views) < expected
        whole = {p[0] for p in pictures.values() if p} == set(range(len(views)))
        if (len(views) != expected and not fewer) or not whole:
            return f"{len(views)} views, the preset has {expected}"
        for suffix, place in pictures.items():
            picture = decode_picture(sample.members[suffix])
            size = (views[place[0]]["height"], views[place[0]]["width"])
            if picture.shape[:2] != size:
                return f"{suffix} is {picture.shape[:2]}, its camera {size}"
    except (KeyError, ValueError, TypeError) as error:
        return f"unreadable ({error})"
    return None


def compare(out: str, other: str) -> list[str]:
    """Differences between two builds beyond 1/255 in pictures and 1e-6 in lengths, one line each.

    Same recipe and constraints on another machine may differ in last digits; anything more is listed.
    """
    out, other = store.absolute(out), store.absolute(other)
    first, second = require_manifest(out, out), require_manifest(other, other)
    differences = []
    if first.num_shards != second.num_shards:
        return [f"shards: {first.num_shards} and {second.num_shards}"]
    names = view_set_names(out)
    if names != view_set_names(other):
        differences.append(f"view sets: {names} and {view_set_names(other)}")
    for split, shards in first.num_shards.items():
        for shard in range(shards):
            pairs = [(shapes_tar(out, split, shard), shapes_tar(other, split, shard))]
            pairs += [
                (views_tar(out, name, split, shard), views_tar(other, name, split, shard))
                for name in names
                if name in view_set_names(other)
            ]
            for one, two in pairs:
                differences += _compare_tars(one, two)
    return differences


def _compare_tars(one: str, two: str) -> Iterator[str]:
    first, second = store.read_bytes(one), store.read_bytes(two)
    if first is None or second is None:
        yield f"{one if first is None else two}: missing"
        return
    if first == second:
        return
    a = {sample.key: sample for _, sample in read_samples(io.BytesIO(first))}
    b = {sample.key: sample for _, sample in read_samples(io.BytesIO(second))}
    for key in sorted(set(a) ^ set(b)):
        yield f"{one if key in a else two}: only here: {key}"
    for key in sorted(set(a) & set(b)):
        for suffix in sorted(set(a[key].members) | set(b[key].members)):
            problem = _compare_members(suffix, a[key], b[key])
            if problem:
                yield f"{one}: {key}.{suffix}: {problem}"


def _compare_members(suffix: str, a: Sample, b: Sample) -> str | None:
    if suffix not in a.members or suffix not in b.members:
        return "only in one of the two"
    one, two = a.members[suffix], b.members[suffix]
    if one == two or suffix in (JSON, MESH):
        return None
    if suffix.endswith(".npy"):
        x, y = decode_array(one).astype(np.float64), decode_array(two).astype(np.float64)
        limit = LENGTH_TOLERANCE if suffix == POINTS else GRAY_TOLERANCE
    else:
        x, y = decode_picture(one).astype(np.float64), decode_picture(two).astype(np.float64)
        limit = GRAY_TOLERANCE
        view, channel = split_view_member(suffix) or (0, "")
        if channel == "depth":
            camera, limit = a.json["views"][view], LENGTH_TOLERANCE + 2 / 65534
            x = depth_of_codes(x.astype(np.uint16), camera["near"], camera["far"])
            y = depth_of_codes(y.astype(np.uint16), camera["near"], camera["far"])
    if x.shape != y.shape:
        return f"{x.shape} and {y.shape}"
    with np.errstate(invalid="ignore"):
        worst = float(np.nanmax(np.abs(x - y), initial=0.0))
    return None if worst <= limit else f"differs by {worst:.3g}, allowed {limit:.3g}"
