"""The presets still draw what they drew: pictures of our own in tests/golden, which need no data from elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
ODD_PIXELS = 4  # of a view: their centre lies on an edge, and another CPU may round it to the other side


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = _make()


def odd_pixels(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(V,) how many pixels of each view are not within 1/255 (uint8) or 1e-6 (float, +inf where empty)."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype == np.uint8:
        return (np.abs(found.astype(int) - expected).max(axis=3) > 1).sum(axis=(1, 2))
    return (~np.isclose(found, expected, rtol=0, atol=1e-6)).sum(axis=(1, 2))


@pytest.mark.parametrize("name", make.CASES)
def test_pictures_equal_the_golden_ones(name: str) -> None:
    found = make.draw_case(name)
    with np.load(GOLDEN / "pictures" / f"{name}.npz", allow_pickle=False) as data:
        expected = dict(data)
    assert set(found) == set(expected)
    for key in ("camera_from_world", "K"):
        np.testing.assert_allclose(found[key], expected[key], atol=1e-6)
    for key in set(found) - {"camera_from_world", "K"}:
        assert odd_pixels(found[key], expected[key]).max() <= ODD_PIXELS, key


@pytest.mark.parametrize("name", make.CASES)
def test_golden_pictures_show_something_and_differ_from_view_to_view(name: str) -> None:
    with np.load(GOLDEN / "pictures" / f"{name}.npz", allow_pickle=False) as data:
        for key in set(data) - {"camera_from_world", "K"}:
            views = data[key]
            assert len(views) == make.VIEWS
            assert len({view.tobytes() for view in views}) == make.VIEWS
            for view in views:
                assert len(np.unique(view.reshape(-1, *view.shape[2:]), axis=0)) > 20


def test_the_folder_holds_what_the_table_names_and_is_small() -> None:
    assert {p.name for p in (GOLDEN / "pictures").iterdir()} == {f"{name}.npz" for name in make.CASES}
    assert {p.stem for p in (GOLDEN / "shapes").iterdir()} == {shape for shape, _, _ in make.CASES.values()}
    assert sum(p.stat().st_size for p in GOLDEN.rglob("*") if p.is_file()) < 2_000_000


def test_a_changed_key_is_noticed() -> None:
    """The comparison can fail: a light from elsewhere, a distance 1 % off."""
    with np.load(GOLDEN / "pictures" / "chair.rgb12.npz", allow_pickle=False) as data:
        expected = dict(data)
    for change, key in (({"light_direction": [0, 1, 0]}, "rgb"), ({"distance": 2.222}, "depth")):
        make.CASES["changed"] = ("chair", "rgb12", change)
        try:
            assert odd_pixels(make.draw_case("changed")[key], expected[key]).min() > 20 * ODD_PIXELS
        finally:
            del make.CASES["changed"]
