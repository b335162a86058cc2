"""The page of `inspect --html`: in one file, safe whatever objects are called, and looked at in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import trimesh
from builders import SMALL, write_off
from PIL import Image

from manifests.layout import read_manifest
from pipeline.inspect.html_gallery import gallery
from pipeline.inspect.view_sheet import objects_of

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>alert(1)</script> \"&amp;' .off"


@pytest.fixture(scope="module")
def page(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    source = folder / "source"
    boxes = {"cup": (1, 1, 1), "plate": (2, 0.2, 2), "Tür & Tor": (0.2, 2, 1)}
    for name, extents in boxes.items():
        for number in range(3):
            path = source / name / f"{number}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            mesh = trimesh.creation.box(extents=extents)
            mesh.visual.vertex_colors = [200, 30, 30, 255]
            path.write_bytes(mesh.export(file_type="ply"))
    write_off(source / "cup" / "train" / "a.off")
    write_off(source / "plate" / HOSTILE.replace("/", "∕"))
    (source / "cup" / "broken.off").write_text("OFF\n3 1 0\n0 0 0\n")
    cloud = trimesh.PointCloud(np.random.default_rng(0).normal(size=(90, 3)))
    (source / "cloud.ply").write_bytes(cloud.export(file_type="ply"))
    (source / "cup" / "bare.obj").write_text("mtllib gone.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0.5\nusemtl m\nf 1 2 3\n")
    out = folder / "out"
    command = ("build", "meshes", "--source", source, "--out", out, "--workers", 0, "max_failed_fraction=1")
    pipeline(*command, *SMALL, "views.depth10.border_share=1")  # pictures of 32 pixels: many touch the border
    pipeline("inspect", out, "--html", folder / "page.html")
    return folder / "page.html"


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attributes}))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_nothing_is_loaded_from_elsewhere_and_names_are_text(page) -> None:
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    assert not elements.of("link")
    assert len(elements.of("script")) == 1
    for _, attributes in elements.found:
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert re.search(r"https?:|@import|url\(", text) is None
    assert "default-src 'none'" in text
    assert "&lt;script&gt;alert(1)" in text


def test_what_a_page_holds(page) -> None:
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    cards, figures = elements.of("article"), elements.of("figure")
    assert len(cards) == 13  # 9 boxes, 2 tetrahedra, a cloud and a bare triangle
    assert sorted(card["data-class"] for card in cards).count("Tür & Tor") == 3
    assert {figure["data-set"] for figure in figures} == {"rgb12", "depth10"}
    assert len(figures) == 13 + 12  # the cloud has no mesh to draw
    assert len(elements.of("canvas")) == 13
    pictures = [image for image in elements.of("img") if image.get("src")]
    assert len(pictures) == len(elements.of("button")) == 12 * (6 + 6) + 13 * 6  # RGB and depth; every one is shown
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]["src"].partition(",")[2]))) as picture:
        assert picture.size == (32, 32)
    assert text.count("rgb12, 6 of 12 views") == 12
    assert text.count("cloud, drag to turn") == 13
    assert "cup_broken_off" in text
    assert "cannot hold 3 vertices and 1 faces" in text
    assert "material not found" in text
    assert "skipped: no mesh: 1" in text
    assert len(text) < 1_000_000


def test_fewer_objects_make_a_smaller_page(pipeline, page, tmp_path) -> None:
    out = page.parent / "out"
    pipeline("inspect", out, "--html", tmp_path / "few.html", "--objects", 4, "--views", 2)
    text = (tmp_path / "few.html").read_text(encoding="utf-8")
    assert len(Elements(text).of("article")) == 4
    assert len(text) < len(page.read_text(encoding="utf-8")) / 2
    message = pipeline("inspect", out, "--html", tmp_path / "x.html", "--split", "nosuch", code=2).stderr
    assert "no split nosuch" in message
    shutil.copytree(out, tmp_path / "cut")
    tar = next((tmp_path / "cut" / "shapes").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:700])
    message = pipeline("inspect", tmp_path / "cut", "--html", tmp_path / "x.html", code=2).stderr
    assert "is damaged" in message
    assert "pipeline check" in message
    assert not (tmp_path / "x.html").exists()


def test_every_object_stands_beside_its_own_pictures(page) -> None:
    """Also where a set left objects out: pictures of the next one must not move up."""
    out, names = str(page.parent / "out"), ["depth10", "rgb12"]
    shards = read_manifest(out).num_shards
    found = [one for split, count in shards.items() for one in objects_of(out, split, count, names)]
    assert all(sample.key == shape.key for shape, views in found for sample in views.values())
    with_meshes = [shape.json["num_faces"] > 0 for shape, _ in found]
    assert [("rgb12" in views) for _, views in found] == with_meshes
    assert all("depth10" in views for _, views in found)
    assert False in with_meshes[:-1]  # else the last one would be the only one without


def test_objects_are_shared_evenly_among_the_splits(page) -> None:
    text = gallery(str(page.parent / "out"), num_objects=2, num_views=1)
    shown = re.findall(r"<h3>.*?</h3><p>(.*?) · (\w+) ·", text)
    assert sorted(split for _, split in shown) == ["all", "train"]


def test_classes_warnings_and_failures_are_counted(page, tmp_path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, count in (("cup", 5), ("plate", 4), ("Tür &amp; Tor", 3), ("no class", 1)):
        assert f">{name} ({count})</option>" in text
    out = Path(shutil.copytree(page.parent / "out", tmp_path / "out"))
    record = next((out / "shapes").glob("*.json"))
    values = json.loads(record.read_text())
    values["warnings"] |= {"texture repeats": 1_234}
    values["failures"] = [{"key": f"k{n}", "id": f"k{n}", "stage": "load", "reason": "no"} for n in range(600)]
    record.write_text(json.dumps(values))
    total = sum(len(json.loads(path.read_text())["failures"]) for path in out.rglob("*-*.json"))
    text = gallery(str(out), num_objects=1, num_views=1)
    assert "<td>shapes<td>warning: texture repeats: 1,234" in text
    assert text.count("<td>load<td>") == 500
    assert f"and {total - 500:,} more: python -m pipeline check" in text


def browse(page: Path, tmp_path: Path, fragment: str, *options: str) -> str:
    """What the browser says of a page, with a profile of its own and no network."""
    if BROWSER is None:
        pytest.skip("no chromium: apt-get install -y chromium")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *options, f"{page.as_uri()}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def shown(document: str) -> tuple[list[str], set[str]]:
    """(classes of the cards, view sets of the figures) that are not hidden."""
    elements = Elements(document)
    cards = sorted(card["data-class"] for card in elements.of("article") if "hidden" not in card)
    return cards, {figure["data-set"] for figure in elements.of("figure") if "hidden" not in figure}


def test_filters_work_in_a_browser(page, tmp_path) -> None:
    everything = browse(page, tmp_path, "", "--dump-dom")
    assert len(shown(everything)[0]) == 13
    assert '<output id="shown">13</output>' in everything
    doors = browse(page, tmp_path, "#class=T%C3%BCr+%26+Tor", "--dump-dom")
    assert shown(doors) == (["Tür & Tor"] * 3, {"rgb12", "depth10"})
    assert '<output id="shown">3</output>' in doors
    assert shown(browse(page, tmp_path, "#set=depth10", "--dump-dom"))[1] == {"depth10"}
    warned = shown(browse(page, tmp_path, "#warned=1", "--dump-dom"))[0]
    expected = sorted(card["data-class"] for card in Elements(everything).of("article") if card["data-warned"] == "1")
    assert warned == expected
    assert 0 < len(warned) < 13
    assert "alert(1)" in everything  # as text: a dialogue would have hung the browser


def test_a_click_enlarges_a_picture_and_a_cloud(page, tmp_path) -> None:
    """By a script at the end of a copy of the page, as headless browsers have no hand."""
    clicks = "document.querySelectorAll('.tiles button')[1].click(); document.querySelector('canvas').dragged = 0;"
    clicks += "document.querySelector('canvas').click();"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text(encoding="utf-8") + f"<script>{clicks}</script>", encoding="utf-8")
    elements = Elements(browse(clicked, tmp_path, "", "--dump-dom"))
    assert "open" in elements.of("dialog")[0]
    assert elements.of("img")[-1] == elements.of("img")[1]
    assert [canvas["width"] for canvas in elements.of("canvas")[:2]] == ["336", "112"]


@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_as_wide_as_its_window(page, tmp_path, width) -> None:
    """Tables scroll by themselves; in a frame, as a browser's own window is no narrower than 500 pixels."""
    code = "document.title = frames[0].document.documentElement.scrollWidth"
    frame = f'<iframe width={width} height=800 style="border:0" src="page.html" onload="{code}"></iframe>'
    wrapped = page.parent / f"wrapped{width}.html"
    wrapped.write_text(frame)
    size = ("--allow-file-access-from-files", "--dump-dom", f"--window-size={width},800")
    said = browse(wrapped, tmp_path, "", *size)
    assert f"<title>{width}</title>" in said


def test_the_page_shows_pictures_and_clouds(page, tmp_path) -> None:
    browse(page, tmp_path, "#class=plate", "--window-size=1200,900", f"--screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as shot:
        pixels = np.asarray(shot.convert("RGB")).astype(int)
    assert pixels.shape == (900, 1200, 3)
    red = (pixels[..., 0] > pixels[..., 1] + 60) & (pixels[..., 0] > pixels[..., 2] + 60)
    rows, columns = np.nonzero(red)
    assert len(rows) > 5000  # red plates in the strips
    assert (columns < 130).sum() > 100  # and red points in the clouds at the left
