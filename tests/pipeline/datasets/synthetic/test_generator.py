"""The parametric dataset: classes, parameters, counts, and the same bytes everywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from manifests.dataset_info import load_table
from pipeline.datasets.synthetic.generator import (
    ParametricOptions,
    assemble_object,
    assets,
    describe,
    generate,
    object_rng,
)
from pipeline.datasets.synthetic.object_models import ASSEMBLIES

TABLE = load_table("parametric")


def middle(class_name: str) -> dict[str, float]:
    return {p.name: p.low + 0.45 * (p.high - p.low) for p in describe(class_name)}


def test_the_table_names_the_assemblies() -> None:
    assert TABLE.classes == tuple(ASSEMBLIES)
    assert len(TABLE.classes) >= 12
    assert {"stool", "chair", "desk", "table", "mug", "bowl"} <= set(TABLE.classes)


@pytest.mark.parametrize("class_name", ASSEMBLIES)
def test_every_parameter_changes_the_object(class_name: str) -> None:
    parameters = describe(class_name)
    assert len(parameters) >= 6
    for parameter in parameters:
        meshes = []
        for value in (parameter.low, parameter.high):
            values = {**middle(class_name), parameter.name: value}
            meshes.append(assemble_object(class_name, values, object_rng(class_name, 0, 0)))
        same = meshes[0].vertices.shape == meshes[1].vertices.shape
        assert not same or not np.array_equal(meshes[0].vertices, meshes[1].vertices), parameter.name


@pytest.mark.parametrize("class_name", ASSEMBLIES)
def test_parts_are_closed_proper_and_face_outwards(class_name: str) -> None:
    for number in range(4):
        rng = object_rng(class_name, 7, number)
        values = {p.name: float(rng.uniform(p.low, p.high)) for p in describe(class_name)}
        for part in ASSEMBLIES[class_name][0](values):
            corners = part.vertices[part.faces]
            cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
            assert (np.linalg.norm(cross, axis=1) > 1e-12).all()
            assert np.einsum("fk,fk->", corners[:, 0], cross) > 0
            edges = np.concatenate([part.faces[:, [i, (i + 1) % 3]] for i in range(3)])
            directed = Counter(map(tuple, edges))
            assert all(directed[b, a] == n == 1 for (a, b), n in directed.items())


def test_objects_are_textured_and_differ_within_a_class() -> None:
    first, second = generate("chair", 0, 0), generate("chair", 0, 1)
    assert first.corner_uvs is not None
    assert len({m.texture.tobytes() for m in first.materials}) >= 2
    assert first.vertices.shape != second.vertices.shape or not np.allclose(first.vertices, second.vertices)


def test_source_objects_are_those_of_the_first_version() -> None:
    digest = hashlib.sha256()
    for class_name in ASSEMBLIES:
        mesh = generate(class_name, 0, 0)
        digest.update((np.round(mesh.vertices, 6) + 0.0).tobytes())
        digest.update(mesh.faces.tobytes())
        for material in mesh.materials:
            digest.update(material.texture.tobytes())
    assert digest.hexdigest() == "7e260e3679796d7437f2c374af0f411cfccf9805be028a8a4d040dcaa8ec2b41"


def test_the_same_bytes_in_any_process() -> None:
    code = (
        "import hashlib; from pipeline.datasets.synthetic.generator import generate;"
        "from pipeline.formats.glb import encode_mesh;"
        "print(hashlib.sha256(b''.join(encode_mesh(generate(c, 3, 1)) for c in ('mug', 'chair', 'car'))).hexdigest())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=dict(os.environ, PYTHONHASHSEED=seed),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1
    assert len(prints.pop().strip()) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize("objects", [1, 19, 100, 760])
def test_any_size_and_even_splits(objects: int) -> None:
    made = list(assets(None, TABLE, ParametricOptions(objects=objects, val_fraction=0.125, test_fraction=0.25)))
    assert len({a.id for a in made}) == objects
    counts = Counter(a.class_name for a in made)
    assert max(counts.values()) - min(counts.values()) <= (1 if objects >= 19 else 0)
    if objects == 760:
        by_split = Counter((a.class_name, a.split) for a in made)
        assert {n for (_, split), n in by_split.items() if split == "train"} == {25}
        assert {n for (_, split), n in by_split.items() if split == "val"} == {5}
        assert {n for (_, split), n in by_split.items() if split == "test"} == {10}


def test_an_unknown_class_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean chair"):
        generate("chiar", 0, 0)
