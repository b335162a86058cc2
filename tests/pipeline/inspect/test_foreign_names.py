"""Names, reasons and paths of others through every command that shows them: nothing is obeyed, nothing is lost."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from builders import REPOSITORY, SMALL, write_off
from foreign_text import FOLDER, HOSTILE, Page, hidden
from markdown_it import MarkdownIt

from manifests.layout import read_manifest
from manifests.plain_text import for_terminal
from pipeline.__main__ import main

CLASSES = [text.strip() for text in HOSTILE]  # a listing's cells are


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """An object for each hostile class, two whose bytes and names are hostile too, and the listing of all."""
    folder = tmp_path_factory.mktemp("source")
    rows = []
    for number, name in enumerate(CLASSES):
        write_off(folder / f"{number}.off", 1 + number)
        rows.append({"path": f"{number}.off", "class": name, "id": f"{number} {name}", "split": "null"})
    bad = folder / "\x1b[2J[red]`|`<b>\u202e.off"
    bad.write_bytes(b"\x1b]52;c;x\x07")
    rows.append({"path": bad.name, "class": CLASSES[0], "id": f"bad {bad.name}", "split": "null"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def building(source: Path, out: Path) -> list[str]:
    places = ["--source", str(source), "--out", str(out), "--workers", "0"]
    return ["build", "meshes", *places, f"listing={source}/list.jsonl", "max_failed_fraction=1.0", *SMALL]


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    """A build in a folder whose path is markup, as others could have made it: with their dataset, versions, reasons."""
    out = tmp_path_factory.mktemp("built") / FOLDER / "out"
    assert main(building(source, out)) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["classes"] == sorted(CLASSES)
    manifest |= {"dataset": "---\nfoo: bar\x85| `a` |\n```", "versions": {"a\x1b[2J | b": "<b>[x](https://y)</b>"}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    record = json.loads((out / "shapes/null-00000.json").read_text())
    record["failures"][0]["reason"] += " \x1b]8;;https://evil.example\x1b\\[/nope]<script>\u202e"
    record["warnings"] = {"\x1b[2J[/nope]<script>": 1}
    (out / "shapes/null-00000.json").write_text(json.dumps(record))
    return out


def typed(capsys, *arguments: object, code: int = 0) -> str:
    """What a command shows, without a control character in it."""
    assert main([str(argument) for argument in arguments]) == code
    told = capsys.readouterr()
    assert hidden(told.out + told.err) == ""
    return told.out + told.err


def test_a_build_says_its_path_and_failures(source, tmp_path, capsys) -> None:
    out = tmp_path / FOLDER / "out"
    told = typed(capsys, *building(source, out))
    assert f"{for_terminal(str(out))}: {len(CLASSES)} objects, 1 failure" in told
    assert r"b'\x1b]52;c;x\x07'" in told  # the reason
    assert "objects are already there" in typed(capsys, *building(source, out))
    told = typed(capsys, "views", "depth10", "--shards", out, "image_size=32", "name=d", "--workers", "0")
    assert f"{for_terminal(str(out))}/views/d: {len(CLASSES)} objects" in told
    assert "nothing is left to do" in typed(capsys, *building(source, out), "--dry-run")
    assert for_terminal(str(out)) in typed(capsys, *building(source, out), "seed=5", code=2)


def test_check_shows_classes_warnings_and_reasons(built, capsys) -> None:
    told = typed(capsys, "check", built)
    for name in CLASSES:
        assert f"    {for_terminal(name)} " in told
    assert r"\u001b]8;;https://evil.example\u001b\[/nope]<script>\u202e" in told
    values = json.loads(typed(capsys, "check", built, "--json"))
    assert set(values["classes"]["null"]) == set(CLASSES)


def test_pages_and_sheets_of_a_build(built, tmp_path, capsys) -> None:
    page, sheet = (tmp_path / FOLDER / f"a.{kind}" for kind in ("html", "png"))
    assert for_terminal(str(page)) in typed(capsys, "inspect", built, "--html", page)
    assert for_terminal(str(sheet)) in typed(capsys, "inspect", built, "--png", sheet)
    found = Page(page.read_text())
    assert found.tags.count("script") == 1
    assert "b" not in found.tags
    assert hidden(page.read_text()) == ""
    for name in CLASSES:
        assert for_terminal(name) in found.words
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_the_dataset_card_shows_names_and_no_more(built, tmp_path, capsys) -> None:
    typed(capsys, "export", built, "--format", "hf", "--to", tmp_path / "to", "--license=---\n[x](y)")
    _, front, body = (tmp_path / "to/README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    manifest = read_manifest(str(built))
    assert values["pretty_name"] == manifest.dataset
    assert values["license"] == "---\n[x](y)"
    assert [each["config_name"] for each in values["configs"]] == ["shapes", "meshes", "depth10", "rgb12"]
    assert [file["split"] for each in values["configs"] for file in each["data_files"]] == ["null"] * 4
    assert hidden(body) == ""
    shown = Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body))
    assert not {"a", "img", "script", "b", "hr", "h3"} & set(shown.tags)
    assert shown.tags.count("h1") == 1
    assert shown.tags.count("h2") == 2
    assert shown.tags.count("th") == 4
    assert shown.tags.count("td") == 4 * 4
    assert for_terminal(", ".join(manifest.classes)) in shown.words
    assert for_terminal("a\x1b[2J | b <b>[x](https://y)</b>") in shown.words
    assert for_terminal(manifest.dataset) in shown.words
    for kind in ("wids", "colmap"):
        typed(capsys, "export", built, "--format", kind, "--to", tmp_path / FOLDER / kind)


def test_lists_and_refusals(tmp_path, capsys) -> None:
    for command in (["recipes"], ["presets"], ["presets", "rgb12"]):
        assert len(typed(capsys, *command).splitlines()) > 5
    for name in ("\x1b[2J", "[red]x[/nope]", "a\udcff"):
        typed(capsys, "check", tmp_path / name, code=2)
        typed(capsys, "build", name, "--out", tmp_path, code=2)


def in_a_terminal(*arguments: object) -> tuple[int, str]:
    """Exit code and what a terminal of its own gets, which Rich writes colours and bars to."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), TERM="xterm-256color", COLUMNS="200")
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    data = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        data += block
        if not block:
            break
    os.close(ours)
    return process.wait(60), data.decode()


def test_a_terminal_obeys_no_name(source, built, tmp_path) -> None:
    copy = tmp_path / FOLDER / "out"
    shutil.copytree(built, copy)
    code, told = in_a_terminal(*building(source, tmp_path / FOLDER / "new"))
    assert code == 0
    code, checked = in_a_terminal("check", copy)
    assert code == 0
    assert "\x1b[" in told  # it does write to a terminal
    for text in (told, checked):
        assert not re.search("\x1b\\[2J|\x1b\\]|[\x07\x9b\x7f\u202e\u2066\u200b]", text)
        assert "[/nope]" in text
