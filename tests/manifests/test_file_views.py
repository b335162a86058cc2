"""Which file is which view of which object: names found are names read, and no file is two views."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from manifests.file_views import EXTENSIONS, FileViews, fields_of, file_names, names_of, parse_name
from manifests.frame_views import FrameViews

FIELDS = {"class": "night_stand", "split": "train", "synset": "03001627", "id": "night_stand_0001"}
PATTERNS = [
    "{class}/{split}/{id}_{view:03d}.png",
    "{synset}/{id}/{view}.{ext}",
    "{id}/{class}/{id}-{view:02d}.jpg",
    "{view}/{id}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("view", [0, 7, 12, 345, 12345])
def test_names_that_are_looked_for_are_read_back(pattern: str, view: int) -> None:
    names = file_names(pattern, FIELDS, view)
    assert len(names) == len(set(names)) == (2 * len(EXTENSIONS) if "{ext}" in pattern else 1)
    for name in names:
        fields, number = parse_name(pattern, name)
        assert number == view
        assert fields == {key: FIELDS[key] for key in fields}
        assert fields.keys() == {key for key in FIELDS if f"{{{key}}}" in pattern}


def test_names_by_hand() -> None:
    assert file_names("{class}/{id}_{view:03d}.png", FIELDS, 7) == ["night_stand/night_stand_0001_007.png"]
    assert file_names("{id}_{view}.png", FIELDS, 7) == ["night_stand_0001_7.png"]
    assert {"a_1.png", "a_1.JPG", "a_1.tiff"} <= set(file_names("{id}_{view}.{ext}", {"id": "a"}, 1))
    with pytest.raises(KeyError):
        file_names("{synset}/{id}_{view}.png", {"id": "a"}, 1)


def test_one_file_is_one_view() -> None:
    """`1.png` and `01.png` beside each other are not both view 1."""
    assert parse_name("{id}_{view}.png", "a_1.png") == ({"id": "a"}, 1)
    assert parse_name("{id}_{view}.png", "a_01.png") is None
    assert parse_name("{id}_{view:02d}.png", "a_01.png") == ({"id": "a"}, 1)
    assert parse_name("{id}_{view:02d}.png", "a_1.png") is None
    assert parse_name("{id}_{view:02d}.png", "a_012.png") is None
    assert parse_name("{id}_{view:02d}.png", "a_112.png") == ({"id": "a"}, 112)


def test_a_field_is_one_part_of_a_path_and_the_same_wherever_it_stands() -> None:
    assert parse_name("{id}_{view}.png", "b/a_1.png") is None
    assert parse_name("{id}/{id}_{view}.png", "a/a_1.png") == ({"id": "a"}, 1)
    assert parse_name("{id}/{id}_{view}.png", "a/b_1.png") is None


def test_what_an_id_may_be() -> None:
    assert names_of("03001627/1a04/models/model.obj", "k") == {
        "id": "03001627/1a04/models/model.obj",
        "key": "k",
        "stem": "model",
        "synset": "03001627",
        "model": "1a04",
    }
    assert names_of("03001627-1a04", "k") == {
        "id": "03001627-1a04",
        "key": "k",
        "stem": "03001627-1a04",
        "synset": "03001627",
        "model": "1a04",
    }
    assert names_of("chair.off", "chair_off") == {"id": "chair.off", "key": "chair_off", "stem": "chair"}
    for form, expected in (("id", "03001627-1a04"), ("key", "k"), ("model", "1a04")):
        fields = fields_of("03001627-1a04", "k", "chair", "test", form)
        assert fields == {"class": "chair", "split": "test", "synset": "03001627", "id": expected}
    assert fields_of("a", "k", None, "test", "model") == {"split": "test"}


def preset(**changes: object) -> FileViews:
    return FileViews(**{"backend": "files", "pattern": "{id}_{view}.png", **changes})


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("../{id}_{view}.png", "without .."),
        ("a/../{id}_{view}.png", "without .."),
        ("/data/{id}_{view}.png", "below --source"),
        ("a//{id}_{view}.png", "below --source"),
        ("{id}.png", "no {view}"),
        ("{view}.png", "no {id}"),
        ("{id}_{veiw}.png", "no field {veiw}"),
        ("{id}_{view}.{png", "without a field"),
    ],
)
def test_a_pattern_stays_below_the_source_and_tells_object_and_view(pattern: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        preset(pattern=pattern)
    assert words in str(caught.value)


def test_sizes_and_numbers_that_are_none() -> None:
    assert [preset(image_size=size).image_size for size in (0, 8, 4096)] == [0, 8, 4096]
    for size in (1, 7, 4097, -1):
        with pytest.raises(ValidationError):
            preset(image_size=size)
    assert preset(view_numbers=[3, 1]).view_numbers == [3, 1]
    with pytest.raises(ValidationError, match="comes twice"):
        preset(view_numbers=[3, 1, 3])


def test_frames_are_in_colour_with_depth_or_without() -> None:
    assert FrameViews(backend="frames", channels=["rgb", "depth"], num_frames=7).num_views == 7
    for channels in ([], ["depth"], ["rgb", "rgb"]):
        with pytest.raises(ValidationError, match="rgb"):
            FrameViews(backend="frames", channels=channels)
