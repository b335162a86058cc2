"""A person's list of objects, and the files of a source: what is built, and what is refused or fails, and why."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from builders import write_off

from manifests.errors import Refused
from pipeline.plan.build_recipe import read_recipe
from pipeline.plan.plan import list_assets, make_plan
from pipeline.sources.file_list import listed_assets
from pipeline.sources.source_files import list_files, read_source


@pytest.fixture
def source(tmp_path) -> Path:
    for name in ("a.off", "deep/b.off", "c d.off"):
        write_off(tmp_path / "source" / name)
    write_off(tmp_path / "secret.off")
    return tmp_path / "source"


def listed(source: Path, text: str, name: str = "list.csv") -> list:
    (source / name).write_text(text, encoding="utf-8")
    return list(listed_assets(str(source / name), source))


def plain(assets: list) -> list[tuple]:
    return [(a.id, a.source, a.split, a.class_name) for a in assets]


def test_csv_and_jsonl_say_the_same(source) -> None:
    expected = [("one", "a.off", "train", "cup"), ("deep/b.off", "deep/b.off", "all", "Tasse, grün")]
    expected.append(("c d.off", "c d.off", "test", None))
    text = '\ufeffpath,class,split,id\na.off,cup,train,one\n\ndeep/b.off,"Tasse, grün",,\nc d.off,,test,\n'
    assert plain(listed(source, text)) == expected
    lines = [
        {"path": "a.off", "class": "cup", "split": "train", "id": "one"},
        {"path": "deep\\b.off", "class": "Tasse, grün"},
        {"path": "./c d.off", "split": "test", "class": None},
    ]
    assert plain(listed(source, "\n".join(map(json.dumps, lines)), "list.jsonl")) == expected
    assert plain(listed(source, "path\tclass\na.off\tcup\n", "list.tsv"))[0][3] == "cup"


def test_paths_are_relative_to_the_listing(source) -> None:
    (source / "deep" / "list.csv").write_text("path\nb.off\n../a.off\n")
    found = plain(list(listed_assets(str(source / "deep" / "list.csv"), source)))
    assert [row[1] for row in found] == ["deep/b.off", "a.off"]
    (source.parent / "list.csv").write_text("path\nsource/a.off\n")
    assert plain(list(listed_assets(str(source.parent / "list.csv"), source)))[0][1] == "a.off"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no row"),
        ("path,class\n", "no row"),
        ("file,class\na.off,x\n", "row 1: column 'file' is not one of path, class, split, id"),
        ("class,split\ncup,train\n", "row 1: no column path"),
        ("path,path\na.off,a.off\n", "row 1: column 'path'.*comes twice"),
        ("path,class\na.off\n", "row 2: 1 cells under 2 columns"),
        ("path,class\na.off,x\n,y\n", "row 3: no path"),
        ("path\n../secret.off\n", "row 2: ../secret.off leads out of the source"),
        ("path\ndeep/../../secret.off\n", "row 2: .* leads out of the source"),
        ("path\n/etc/passwd\n", "row 2: /etc/passwd leads out"),
        ("path\nC:\\x.off\n", "row 2: .* leads out"),
        ("path\n..\\secret.off\n", "row 2: .* leads out"),
        ("path\n.\n", "row 2: . leads out"),
        ("path,split\na.off,../../x\n", "row 2: the split '../../x' must be"),
        ("path,split\na.off,später\n", "row 2: the split"),
        ("path\na.off\ndeep/b.off\n./a.off\n", "row 4: ./a.off is already in row 2"),
        ('path\n"a.off\n', "row [23]: unexpected end of data"),
    ],
)
def test_a_wrong_listing_is_one_line_that_names_the_row(source, text: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        listed(source, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "row 2: not JSON"),
        ("[" * 100_000, "row 2: not JSON"),
        ("[1]", "row 2: not a JSON object"),
        ('{"path": 7}', "row 2: path is no text: 7"),
        ('{"paht": "a.off"}', "row 2: column 'paht' is not one of"),
        ('{"class": "x"}', "row 2: no column path"),
        ('{"path": "a.off", "id": "\\ud800"}', "row 2: id is no Unicode text"),
    ],
)
def test_a_wrong_line_of_json_names_its_row(source, line: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        listed(source, '{"path": "a.off"}\n' + line, "list.jsonl")


def test_other_listings_are_refused(source) -> None:
    for name, words in (("list.xlsx", "no .csv, .tsv or .jsonl"), ("none.csv", "No such file")):
        if name == "list.xlsx":
            (source / name).touch()
        with pytest.raises(Refused, match=words):
            list(listed_assets(str(source / name), source))
    (source / "latin.csv").write_bytes("path\ngrün.off\n".encode("latin-1"))
    with pytest.raises(Refused, match="not UTF-8"):
        list(listed_assets(str(source / "latin.csv"), source))


def test_equal_ids_get_keys_of_their_own(source, tmp_path) -> None:
    (source / "list.csv").write_text("path,id\na.off,x y.1\ndeep/b.off,x y.1\nc d.off,z-1\n")
    recipe = read_recipe("meshes", {"listing": str(source / "list.csv")})
    plan, jobs = make_plan(recipe, str(source), str(tmp_path / "out"))
    keys = {a.source: a.key for job in jobs for a in job.assets}
    assert keys["c d.off"] == "z-1"
    twins = sorted((keys["a.off"], keys["deep/b.off"]))
    assert all(key.startswith("x_y_1-") and len(key) == len("x_y_1-") + 8 for key in twins)
    assert twins[0] != twins[1]
    again = list_assets(recipe, plan.table, plan.root)
    assert {a.source: a.key for a in again} == keys


def test_the_place_of_a_listing_is_in_no_hash_and_its_rows_are(source, tmp_path) -> None:
    (source / "one.csv").write_text("path,class\na.off,cup\n")
    (source / "two.csv").write_text("class,path\ncup,a.off\n")
    (source / "three.csv").write_text("class,path\nmug,a.off\n")
    plans = [
        make_plan(read_recipe("meshes", {"listing": str(source / f"{name}.csv")}), str(source), str(tmp_path / "o"))[0]
        for name in ("one", "two", "three")
    ]
    assert len({plan.shapes_hash for plan in plans}) == 1
    assert plans[0].assets_hash == plans[1].assets_hash != plans[2].assets_hash
    assert plans[2].classes == ("mug",)


def test_files_are_listed_sorted_without_hidden_ones_and_links_to_folders_not_followed(source) -> None:
    for name in (".git/x.off", "__MACOSX/y.off", "deep/.z.off", "B.OFF", "b.txt"):
        write_off(source / name)
    (source / "loop").symlink_to(source, target_is_directory=True)
    assert list(list_files(source, (".off",))) == ["B.OFF", "a.off", "c d.off", "deep/b.off", "loop"]


def test_what_is_no_file_of_the_source_says_why(source) -> None:
    (source / "out.off").symlink_to(source.parent / "secret.off")
    (source / "nowhere.off").symlink_to(source / "none")
    (source / "circle.off").symlink_to(source / "circle.off")
    (source / "folder.off").mkdir()
    (source / "link").symlink_to(source / "deep", target_is_directory=True)
    (source / "empty.off").write_text("\n")
    os.mkfifo(source / "pipe.off")
    (source / "inside.off").symlink_to(source / "a.off")
    expected = {
        "out.off": "leads out of the source",
        "../secret.off": "leads out of the source",
        "deep/../../secret.off": "leads out of the source",
        str(source.parent / "secret.off"): "no path inside the source",
        "nul\0.off": "no path inside the source",
        "nowhere.off": "cannot be read: No such file",
        "circle.off": "cannot be read: .*(Too many levels|circle)",
        "folder.off": "a folder in place of a file",
        "link": "a link to a folder is not followed",
        "pipe.off": "a pipe or device",
        "empty.off": "empty",
        "bad\\xff.off": "not UTF-8: rename",
        "x" * 300: "cannot be read: File name too long",
    }
    for name, words in expected.items():
        with pytest.raises(ValueError, match=words):
            read_source(source, name)
    assert read_source(source, "inside.off") == read_source(source, "a.off")
