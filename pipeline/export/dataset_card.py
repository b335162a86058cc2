"""Writes the dataset card of the Hugging Face Hub: README.md, whose front matter says what can be loaded.

The Hub reads all configurations of a repository by one reader, so tars alone are configurations; the table of samples
is read by its path. Types are written out, since a reader that guesses them from five samples meets others later.
"""

from __future__ import annotations

import json
import re
from typing import Any

from manifests.dataset_info import load_table, table_names
from manifests.install import missing
from manifests.layout import MESHES, SHAPES, VIEWS
from manifests.plain_text import code_span, for_markdown, for_terminal, number_of
from manifests.samples import FORMAT, JSON, MESH, POINTS
from pipeline.export.finished_build import Build, Survey
from pipeline.export.parquet_index import INDEX

_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_CLASSES_SHOWN = 60
Type = str | list["Type"] | dict[str, "Type"]
_WARNING: Type = {"type": "string", "count": "int64"}
_SHAPE_JSON: Type = {
    "format": "int64",
    "key": "string",
    "id": "string",
    "dataset": "string",
    "split": "string",
    "label": "int64",
    "class": "string",
    "source": "string",
    "world_from_source": [["float64"]],
    "num_points": "int64",
    "num_faces": "int64",
    "warnings": [_WARNING],
}
_VIEW: Type = {
    "model": "string",
    "camera_from_world": [["float64"]],
    "K": [["float64"]],
    "width": "int64",
    "height": "int64",
    "near": "float64",
    "far": "float64",
    "coverage": "float64",
    "mask_iou": "float64",
    "frame": "string",
}
_VIEW_JSON: Type = {"format": "int64", "key": "string", "preset": "string", "views": [_VIEW], "warnings": [_WARNING]}


def card(build: Build, found: Survey, license: str | None) -> str:
    """The text of README.md. license: an identifier of the Hub's, or None: a comment says where to fill it in.

    Raises Refused where huggingface_hub is missing.
    """
    try:
        from huggingface_hub import DatasetCardData
    except ImportError as error:
        raise missing("huggingface_hub", "export") from error
    data = DatasetCardData(license=license, **_front_matter(build, found))
    asked = "" if license else "# license: that of the source dataset, to be filled in by you\n"
    return f"---\n{asked}{_yaml(data.to_dict())}---\n\n{_body(build, found)}"


def hub_splits(splits: list[str]) -> dict[str, str]:
    """Split -> its name on the Hub, where names are of letters, digits and _, and `all` means something else."""
    names = {split: re.sub(r"\W", "_", split) for split in splits}
    if "all" in names:
        names["all"] = "train" if "train" not in names.values() else "everything"
    return names


def config_names(build: Build) -> dict[str, str]:
    """Folder of tars -> name of its configuration; a view set's is its own name."""
    taken = {SHAPES, MESHES, "default"}
    names = {}
    for folder in build.folders:
        name = folder.removeprefix(f"{VIEWS}/")
        names[folder] = f"views_{name}" if folder.startswith(VIEWS) and name in taken else name
    return names


def _front_matter(build: Build, found: Survey) -> dict[str, Any]:
    """What the Hub reads: the size of a build, its configurations with their tars, the types of their members."""
    samples = sum(counts.samples for counts in build.manifest.splits.values())
    splits = hub_splits(list(build.manifest.splits))
    configs, infos = [], []
    for folder, name in config_names(build).items():
        files = [
            {"split": hub, "path": f"{folder}/{split}-{'[0-9]' * 5}*.tar"}
            for split, hub in splits.items()
            if found[folder][split]
        ]
        default = {"default": True} if folder == SHAPES else {}
        configs.append({"config_name": name, **default, "data_files": files})
        infos.append({"config_name": name, "features": _features(_members(folder, found))})
    return {
        "pretty_name": _title(build),
        "size_categories": [next((name for limit, name in _SIZES if samples < limit), "10M<n<100M")],
        "tags": ["3d", "point-cloud", "multi-view", "depth", "webdataset"],
        "configs": configs,
        "dataset_info": infos,
    }


def _yaml(values: dict[str, Any]) -> str:
    """A line for each value, and for each entry of a list. Values are JSON, which YAML reads as it reads the escapes of
    `for_terminal`."""
    lines: list[str] = []
    for name, value in values.items():
        entries = [f"- {_json(each)}" for each in value] if isinstance(value, list) else []
        lines += [f"{name}:", *entries] if entries else [f"{name}: {_json(value)}"]
    return "".join(f"{for_terminal(line)}\n" for line in lines)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _members(folder: str, found: Survey) -> dict[str, Type]:
    """Suffix -> type of every member that there is in a folder's tars, and the two fields that a reader adds."""
    suffixes = sorted({suffix for tars in found[folder].values() for tar in tars for suffix in tar.suffixes})
    types: dict[str, Type] = {}
    for suffix in suffixes:
        if suffix == JSON:
            types[suffix] = _SHAPE_JSON if folder == SHAPES else _VIEW_JSON
        elif suffix.endswith(".npy"):
            kind = "float32" if suffix == POINTS else "uint8"
            types[suffix] = [kind] if suffix == "parts.npy" else [[kind]]
        else:
            types[suffix] = "binary" if suffix == MESH else "image"
    return types | {"__key__": "string", "__url__": "string"}


def _features(types: dict[str, Type]) -> list[dict[str, Any]]:
    return [{"name": name, **_type(kind)} for name, kind in types.items()]


def _type(kind: Type) -> dict[str, Any]:
    """A type in the form of the Hub: dtype, struct or list."""
    if isinstance(kind, str):
        return {"dtype": kind}
    if isinstance(kind, dict):
        return {"struct": _features(kind)}
    (inner,) = kind
    if isinstance(inner, dict):
        return {"list": _features(inner)}
    return {"list": inner if isinstance(inner, str) else _type(inner)}


def _text(value: str) -> str:
    """A string in quotes, as Python reads it."""
    return for_terminal(json.dumps(value, ensure_ascii=False))


def _title(build: Build) -> str:
    name = build.manifest.dataset
    title = load_table(name).title if name in table_names() else ""
    return title or name


def _body(build: Build, found: Survey) -> str:
    manifest, names = build.manifest, config_names(build)
    splits = hub_splits(list(manifest.splits))
    views = " and views" if build.view_sets else ""
    parts = [
        f"# {for_markdown(_title(build))}\n",
        f"Point clouds{views} of objects, in webdataset shards made by `cross-most`. "
        "The licence is that of the source dataset.\n",
        "| configuration | what | " + " | ".join(splits.values()) + " | bytes |",
        "|---|---|" + "---:|" * (len(splits) + 1),
    ]
    for folder, name in names.items():
        counts = [f"{sum(tar.samples for tar in found[folder][split]):,}" for split in splits]
        size = sum(tar.bytes for tars in found[folder].values() for tar in tars)
        parts.append(f"| {code_span(name)} | {for_markdown(_what(build, folder))} | {' | '.join(counts)} | {size:,} |")
    return "\n".join(parts) + "\n\n" + _how_to_load(build, names) + _facts(build)


def _what(build: Build, folder: str) -> str:
    if folder == SHAPES:
        return f"{build.manifest.recipe.get('num_points', '')} points an object, label, class, transform".strip()
    if folder == MESHES:
        return "textured mesh (GLB) of objects that have one"
    preset = build.view_sets[folder.removeprefix(f"{VIEWS}/")].preset
    return f"{number_of(preset.num_views, 'view')}: {', '.join(preset.channels)}; cameras"


def _how_to_load(build: Build, names: dict[str, str]) -> str:
    views = next((name for folder, name in names.items() if folder.startswith(VIEWS)), None)
    split = next(iter(hub_splits(list(build.manifest.splits)).values()))
    joined = ""
    if views is not None:
        joined = (
            f'views = load_dataset("USER/NAME", {_text(views)}, split="{split}", streaming=True)\n'
            'print(next(iter(views))["json"]["views"][0]["camera_from_world"])\n'
        )
    return f"""## Loading

```python
from datasets import load_dataset

shapes = load_dataset("USER/NAME", "{names[SHAPES]}", split="{split}", streaming=True)
print(next(iter(shapes))["json"]["class"])
{joined}```

`webdataset` reads the same tars. A sample of a view set and one of the shapes belong together by `__key__`; a view
set's tar holds a subsequence of the keys of the shapes' tar of the same name.

`{INDEX}/<split>.parquet` has a row an object: key, id, label, class, and for shapes, meshes and each view set the tar,
the offset and the bytes of its sample, so that one object can be fetched by a range request. It is read by its path:

```python
import pandas

index = pandas.read_parquet("hf://datasets/USER/NAME/{INDEX}/{next(iter(build.manifest.splits))}.parquet")
```

Depth is 16-bit: 0 is empty, else `z = near + (code - 1) / 65534 * (far - near)`, world units along the optical axis.
Cameras look along +z with x right and y down (OpenCV); `camera_from_world` is 4x4, `K` in pixels with pixel centres at
half integers. The world is right-handed with +Y up. `world_from_source` leads back to the source file's units.

"""


def _facts(build: Build) -> str:
    manifest = build.manifest
    lines = [
        "## Facts\n",
        f"- source dataset: {code_span(manifest.dataset)}; {sum(c.failures for c in manifest.splits.values()):,} of "
        f"{number_of(sum(c.assets for c in manifest.splits.values()), 'object')} could not be made",
        f"- format {FORMAT}; shapes {code_span(manifest.shapes_hash)}; "
        f"list of objects {code_span(manifest.assets_hash)}",
        *(f"- views {code_span(name)}: {code_span(view_set.hash)}" for name, view_set in build.view_sets.items()),
        "- made with " + for_markdown(", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    if manifest.classes:
        shown = ", ".join(map(for_markdown, manifest.classes[:_CLASSES_SHOWN]))
        more = len(manifest.classes) - _CLASSES_SHOWN
        others = f" and {more} more" if more > 0 else ""
        lines.append(f"- {number_of(len(manifest.classes), 'class')}, in label order: {shown}{others}")
    return "\n".join(lines) + "\n"
