"""Writes the table of samples: a parquet file a split, with the place of each sample. The home of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from manifests import store
from manifests.errors import Refused
from manifests.install import missing
from manifests.layout import SHAPES, VIEWS
from manifests.records import Record
from manifests.samples import BLOCK, JSON, Sample, read_samples
from pipeline.export.finished_build import Build, finished_record

INDEX = "index"  # the folder of the tables
_PLACES = (("tar", "string"), ("offset", "int64"), ("bytes", "int64"))
_FIXED = {
    "key": "string",
    "id": "string",
    "split": "string",
    "shard": "int32",
    "label": "int32",
    "class": "string",
    "num_points": "int32",
    "num_faces": "int32",
}


def require() -> Any:
    """pyarrow. Raises Refused, naming the command, where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing("pyarrow", "export") from error
    return pyarrow


def columns(build: Build) -> dict[str, str]:
    """Name -> type of the columns.

    `<what>_tar`, `<what>_offset` and `<what>_bytes` of shapes, meshes and views_<set>: the tar, relative to the folder
    of the build, and the range in it that holds all members of the sample; null where the sample is not in there.
    """
    found = dict(_FIXED)
    for folder in build.folders:
        found |= {f"{_prefix(folder)}_{name}": kind for name, kind in _PLACES}
        if folder.startswith(VIEWS):
            found[f"{_prefix(folder)}_num_views"] = "int32"
    return found


def _prefix(folder: str) -> str:
    return folder.replace("/", "_")


def write_split(build: Build, split: str, path: str) -> None:
    """Writes the rows of one split, a row group a shard."""
    arrow = require()
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in columns(build).items()])
    with store.writing(path) as file, arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for shard in range(build.manifest.num_shards[split]):
            writer.write_table(arrow.Table.from_pylist(list(rows(build, split, shard)), schema))


def rows(build: Build, split: str, shard: int) -> Iterator[dict[str, Any]]:
    """The rows of one shard, in the order of its tar of shapes."""
    places: dict[str, dict[str, dict[str, Any]]] = {}
    for folder in build.folders:
        tar = build.tars(folder, split)[shard]
        record = finished_record(build.out, tar)
        places[folder] = _places(folder, tar, record)
        if folder.startswith(VIEWS):
            name = folder.removeprefix(f"{VIEWS}/")
            preset = build.view_sets[name].preset
            counts = dict.fromkeys(record.keys, preset.num_views)
            if preset.reads == "frames":
                counts = {values["key"]: len(values["views"]) for values in _jsons(build.out, tar)}
            for key, count in counts.items():
                places[folder][key][f"{_prefix(folder)}_num_views"] = count
    for values in _jsons(build.out, build.tars(SHAPES, split)[shard]):
        row = {name: values[name] for name in _FIXED if name != "shard"} | {"shard": shard}
        for of_folder in places.values():
            row |= of_folder.get(values["key"], {})
        yield row


def _places(folder: str, tar: str, record: Record) -> dict[str, dict[str, Any]]:
    """Key -> the columns that say where its sample lies."""
    prefix, found = _prefix(folder), {}
    ends = [*record.offsets[1:], record.bytes]
    for number, (key, start, end) in enumerate(zip(record.keys, record.offsets, ends, strict=True)):
        sizes = [size for of in record.sizes.values() if (size := of[number]) is not None]
        length = sum(BLOCK + size + -size % BLOCK for size in sizes) or end - start
        found[key] = {f"{prefix}_tar": tar, f"{prefix}_offset": start, f"{prefix}_bytes": length}
    return found


def _jsons(out: str, tar: str) -> Iterator[dict[str, Any]]:
    """The json member of every sample of a tar, in order; the others are passed over."""
    path = store.join(out, tar)
    try:
        with store.open_reading(path) as file:
            yield from (sample.json for _, sample in read_samples(file, _is_json))
    except (ValueError, KeyError, OSError) as error:
        raise Refused(f"{path}: {error}: python -m pipeline check {out}") from error


def _is_json(sample: Sample, suffix: str) -> bool:
    return suffix == JSON
