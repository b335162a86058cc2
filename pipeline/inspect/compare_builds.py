"""Compares two builds sample by sample, within the tolerances between machines."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from manifests import store
from manifests.layout import require_manifest, shapes_tar, view_set_names, views_tar
from manifests.samples import (
    JSON,
    MESH,
    POINTS,
    Sample,
    decode_array,
    decode_picture,
    depth_of_codes,
    read_samples,
    split_view_member,
)
from pipeline.inspect.sample_checks import ODD, worded

GRAY_TOLERANCE = 1.0  # of 255, between machines
LENGTH_TOLERANCE = 1e-6


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
    try:
        first, second = store.read_bytes(one), store.read_bytes(two)
    except ValueError as error:
        yield str(error)
        return
    if first is None or second is None:
        yield f"{one if first is None else two}: missing"
        return
    if first == second:
        return
    try:
        a, b = ({sample.key: sample for _, sample in read_samples(io.BytesIO(data))} for data in (first, second))
    except ValueError as error:
        yield f"{one} or {two}: {error}"
        return
    for key in sorted(set(a) ^ set(b)):
        yield f"{one if key in a else two}: only here: {key}"
    for key in sorted(set(a) & set(b)):
        for suffix in sorted(set(a[key].members) | set(b[key].members)):
            try:
                problem = _compare_members(suffix, a[key], b[key])
            except (ValueError, IndexError, *ODD) as error:
                problem = worded(error)
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
            camera = a.json["views"][view]
            limit = LENGTH_TOLERANCE + (camera["far"] - camera["near"]) / 65534  # a last digit of its 16 bits
            x = depth_of_codes(x.astype(np.uint16), camera["near"], camera["far"])
            y = depth_of_codes(y.astype(np.uint16), camera["near"], camera["far"])
    if x.shape != y.shape:
        return f"{x.shape} and {y.shape}"
    with np.errstate(invalid="ignore"):
        worst = float(np.nanmax(np.abs(x - y), initial=0.0))
    return None if worst <= limit else f"differs by {worst:.3g}, allowed {limit:.3g}"
