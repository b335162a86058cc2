"""Prompt sets: shipped, from a file, written out; and what is refused."""

from __future__ import annotations

import pytest

from manifests.errors import Refused
from training.settings.fit_recipe import CrossMostRecipe, read_recipe
from training.settings.prompts import DEFAULT_PROMPTS, prompt_set_names


def prompts(value: object) -> tuple[str, ...]:
    return read_recipe("small_cross_most", {"prompts": value}).prompts


def test_shipped_sets() -> None:
    assert prompt_set_names() == ["clip2point", "pointclip", "ulip64"]
    assert len(set(prompts("ulip64"))) == 64
    assert prompts("ulip64")[0] == "a point cloud model of {}."
    assert prompts("clip2point") == ("image of a {}",)
    assert prompts("pointclip") == ("point cloud depth map of a {}.",)
    assert CrossMostRecipe().prompts == DEFAULT_PROMPTS == ("a photo of a {}.", "a 3D model of a {}.")


def test_a_file_and_a_list(tmp_path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("# of our own\n\na sketch of a {}.\n  the {}  \n")
    assert prompts(str(file)) == ("a sketch of a {}.", "the {}")
    assert prompts("a {}") == ("a {}",)
    assert prompts(["a {}", "the {}"]) == ("a {}", "the {}")


@pytest.mark.parametrize("value", [[], ["a photo"], ["{} and {}"], ["{name}."], ["{} {"], ["{} }"]])
def test_prompts_without_one_place_for_the_name_are_refused(value: list[str]) -> None:
    with pytest.raises(Refused, match=r"prompts: a prompt needs one \{\}"):
        prompts(value)


def test_an_unknown_name_is_refused_with_those_that_there_are(tmp_path) -> None:
    with pytest.raises(Refused, match=r"prompts: ulip46 is no prompt.*clip2point, pointclip, ulip64"):
        prompts("ulip46")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match="no readable file"):
        prompts(str(tmp_path / "binary.txt"))
