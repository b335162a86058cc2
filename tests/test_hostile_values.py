"""What hypothesis thinks of, given to the parsers of text, JSON, TOML and bytes: a value or an error of a known type.

Damage of real files is in tests/pipeline/test_fuzz_pipeline.py and tests/training/test_fuzz_training.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.config import parse_changes, parse_recipe, parse_toml
from manifests.errors import Refused
from manifests.layout import BuildManifest, ViewSetManifest, read_manifest, read_view_set
from manifests.records import Record, parse_assets, parse_json
from manifests.samples import FORMAT, decode_array, decode_picture, read_samples
from pipeline.formats.gltf import read_gltf
from pipeline.formats.header_checks import check_header
from pipeline.formats.off import read_off
from pipeline.formats.point_cloud import CLOUD_SUFFIXES, read_cloud
from pipeline.plan.build_recipe import stored_recipe
from pipeline.sources.file_list import listed_assets
from training.paper_tables.table_rows import Table
from training.settings.fit_recipe import RECIPE_OF, saved_recipe
from training.settings.prompts import read_prompts
from training.weights.safe_load import read_tensors

MANY = settings(max_examples=400, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
HEADS = (
    *(b"OFF\n", b"COFF 3 1 0\n", b"ply\nformat ascii 1.0\n", b"glTF\x02\0\0\0", b"\x93NUMPY\x01\0", b"0 0 0\n"),
    *(
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"PK\x03\x04",
        b"\x80\x02",
        b"# .PCD v0.7\nFIELDS x y z\n",
        b'{"a": 1}',
    ),
)
BYTES = st.builds(lambda head, tail: head + tail, st.sampled_from((b"", *HEADS)), st.binary(max_size=300))
TEXTS = st.text(alphabet="abxyz0159 .,;=-+#'\"[]{}\t\n\r\\/é\0", max_size=200)

RECORD: dict[str, Any] = {
    "format": 1,
    "count": 1,
    "bytes": 2048,
    "sha256": "0" * 64,
    "hash": "h",
    "keys": ["a"],
    "offsets": [0],
    "sizes": {"json": [9]},
    "checks": {"json": [7]},
    "failures": [{"key": "b", "id": "b", "stage": "load", "reason": "no faces"}],
    "skipped": [{"key": "c", "reason": "no mesh"}],
    "gates": {"coverage_min": 0.5},
}


def in_one_line(call: Callable[[], Any], errors: tuple[type[Exception], ...] = (ValueError, Refused)) -> Any:
    """What a call gives; None where it ends with one of these errors, whose words are one line that can be printed."""
    try:
        return call()
    except UnicodeError:
        return None
    except errors as error:
        words = str(error)
    assert "\n" not in words
    assert len(words) < 2000
    words.encode()
    return None


@MANY
@given(st.sampled_from(sorted(RECORD)), JSON)
def test_records(name: str, value: Any) -> None:
    found = in_one_line(lambda: Record.from_json({**RECORD, name: value}))
    if found is not None:
        assert len(found.keys) == len(found.offsets)
        assert Record.from_json(json.loads(json.dumps(found.to_json()))).keys == found.keys


def test_the_record_that_is_changed_is_right() -> None:
    assert Record.from_json(RECORD).keys == ("a",)


@MANY
@given(st.sampled_from(["format", "classes", "splits", "counts", "complete", "name", "preset", "versions"]), JSON)
def test_manifests(tmp_path_factory, name: str, value: Any) -> None:
    out = tmp_path_factory.mktemp("build")
    (out / "views/rgb12").mkdir(parents=True)
    for path in (out / "manifest.json", out / "views/rgb12/manifest.json"):
        path.write_text(json.dumps({"format": FORMAT, name: value}))
    assert not isinstance(in_one_line(lambda: read_manifest(str(out))), BuildManifest)  # most of it is missing
    assert not isinstance(in_one_line(lambda: read_view_set(str(out), "rgb12")), ViewSetManifest)


@MANY
@given(BYTES | TEXTS.map(str.encode))
def test_json(data: bytes) -> None:
    in_one_line(lambda: parse_json(data))
    in_one_line(lambda: parse_assets(data))


@MANY
@given(
    TEXTS, st.dictionaries(st.sampled_from(["data", "optimizer", "views", "method", "rows", "title", "dataset"]), JSON)
)
def test_recipes(text: str, values: dict[str, Any]) -> None:
    in_one_line(lambda: parse_toml(text))
    in_one_line(lambda: parse_changes([text]))
    in_one_line(lambda: saved_recipe(values, "recipe x"))
    for kind in (*RECIPE_OF.values(), Table):
        in_one_line(lambda kind=kind: parse_recipe(kind, values, "recipe x"))
    for dataset in ({}, {"dataset": "meshes"}, {"dataset": "redwood"}):
        in_one_line(lambda dataset=dataset: stored_recipe({**values, **dataset}, "recipe x"))


@MANY
@given(BYTES)
def test_members_of_a_shard(data: bytes) -> None:
    in_one_line(lambda: decode_array(data))
    in_one_line(lambda: decode_picture(data))
    in_one_line(lambda: list(read_samples(io.BytesIO(data))))


@MANY
@given(BYTES, st.sampled_from([".ply", ".glb", ".gltf"]))
def test_meshes(data: bytes, suffix: str) -> None:
    in_one_line(lambda: read_off(data))
    in_one_line(lambda: check_header(data, suffix))
    in_one_line(lambda: read_gltf(data, suffix, None))


SHAPE = {
    "asset": {"version": "2.0"},
    "buffers": [{"uri": "data:;base64," + "AACAPwAAAAAAAIA/" * 8, "byteLength": 96}],
    "bufferViews": [{"buffer": 0, "byteLength": 96}],
    "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": kind} for kind in ("VEC3", "VEC2")],
    "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
    "textures": [{"source": 0, "sampler": 0}],
    "images": [{"bufferView": 0}],
    "samplers": [{"wrapS": 10497}],
    "skins": [{"joints": [0]}],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1, "COLOR_0": 0}, "material": 0}]}],
    "nodes": [{"mesh": 0, "skin": 0}],
    "scenes": [{"nodes": [0]}],
}


@MANY
@given(st.sampled_from(sorted(SHAPE)), st.data())
def test_glTF_of_another_form(key: str, data: st.DataObject) -> None:
    """One value anywhere in a right file is replaced by any other."""
    values = json.loads(json.dumps(SHAPE))
    here: Any = values
    while isinstance(here[key], dict | list) and here[key] and data.draw(st.booleans()):
        here = here[key]
        key = data.draw(st.sampled_from(list(here) if isinstance(here, dict) else range(len(here))))
    here[key] = data.draw(JSON)
    in_one_line(lambda: read_gltf(json.dumps(values).encode(), ".gltf", None))


def test_the_glTF_that_is_changed_is_right() -> None:
    assert len(read_gltf(json.dumps(SHAPE).encode(), ".gltf", None).mesh.faces) == 1


@MANY
@given(BYTES | TEXTS.map(str.encode), st.sampled_from([s for s in CLOUD_SUFFIXES if s != ".ply"]))
def test_clouds(tmp_path_factory, data: bytes, suffix: str) -> None:
    folder = tmp_path_factory.mktemp("clouds")
    (folder / f"a{suffix}").write_bytes(data)
    in_one_line(lambda: read_cloud(folder, f"a{suffix}"))


@MANY
@given(TEXTS, st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_lists(tmp_path_factory, text: str, suffix: str) -> None:
    folder: Path = tmp_path_factory.mktemp("lists")
    (folder / "a.off").write_text("OFF\n")
    path = folder / f"list{suffix}"
    head = {".csv": "path,class\na.off,x\n", ".tsv": "path\tclass\n", ".jsonl": '{"path": "a.off"}\n'}[suffix]
    path.write_text(head + text)
    in_one_line(lambda: list(listed_assets(str(path), folder)))
    in_one_line(lambda: read_prompts(path))


@MANY
@given(BYTES)
def test_weights(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("weights") / "a.pth"
    path.write_bytes(data)
    with pytest.raises(Refused) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
