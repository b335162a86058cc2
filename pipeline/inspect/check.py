"""Checks a build: every byte against its record, every record against the manifest, every sample's form.

Each tar is read once, and hashed block by block while a block is still in the processor's cache. Every json, cloud and
camera is judged; a picture's bytes are those of the record, and its size, kind and end are read from its own headers.
With `deep` every picture is decoded as well, which takes ten times as long.
"""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

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
from manifests.records import Record, read_record, record_path
from manifests.samples import MESH
from pipeline.inspect.expected_objects import ExpectedObjects, expected_objects, first_odd, row_hash
from pipeline.inspect.findings import Findings
from pipeline.inspect.sample_checks import ODD, shape_values, view_values, warning_counts, worded
from pipeline.inspect.verified_tars import OnTar, VerifiedTars

_MOST_PROBLEMS = 10_000  # a manifest may announce a million shards that are not there


def check(out: str, on_tar: OnTar = lambda tar: None, deep: bool = False) -> Findings:
    """Reads every byte of a build. Raises Refused when OUT is no build.

    on_tar: told each tar before it is read. deep: decodes every picture too, not only its headers.
    """
    out = store.absolute(out)
    manifest = require_manifest(out, out)
    found = Findings(complete=manifest.complete, passed_over=manifest.passed_over)
    reading = VerifiedTars(found, on_tar, deep)
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
    """Which objects each shard should hold, None, with the problem noted, where the build does not say."""
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
    reading: VerifiedTars,
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
                found.blame(tar, f"{tar}: leaves out {min(strangers)}, which its shapes tar does not hold")
    return keys


def _check_shapes(
    tar: str, manifest: BuildManifest, split: str, objects: dict[int, int] | None, reading: VerifiedTars
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
            values = shape_values(sample, manifest)
            warnings = warning_counts(values["warnings"])
            row = row_hash(*(values[name] for name in ("split", "id", "class", "source")))
            if objects is not None and row != objects.get(hash(sample.key), row):
                raise ValueError(f"its id, split, class or source are not those of {ASSETS}")
        except (ValueError, *ODD) as error:
            found.blame(tar, f"{tar}: {sample.key}: {worded(error)}")
            continue
        counts[values["class"] or ""] += 1
        found.warn(sample.key, warnings)
        if values["num_faces"]:
            with_faces.add(sample.key)
    return record, frozenset(with_faces)


def _check_views(tar: str, view_set: ViewSetManifest, reading: VerifiedTars) -> Record | None:
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
            values = view_values(sample, view_set, reading.deep)
            found.warn(sample.key, warning_counts(values.get("warnings", [])))
        except (ValueError, *ODD) as error:
            found.blame(tar, f"{tar}: {sample.key}: {worded(error)}")
    if record.gates:
        reading.gates.setdefault(view_set.name, []).append((record.count, record.gates))
    return record


def _same_keys(tar: str, there: tuple[str, ...], expected: tuple[str, ...], found: Findings) -> None:
    if there != expected:
        odd = sorted(set(there) ^ set(expected))
        found.blame(tar, f"{tar}: keys are not those of the shapes ({odd[0] if odd else 'another order'})")
