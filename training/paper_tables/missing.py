"""What the rows of a table need and what is not there, before hours are spent: builds, view sets, points, weights.

Each comes with the command or key that makes up for it. A build or view set that is missing costs its rows alone, and a
weights file that is named and not there ends the whole command before it begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manifests.layout import asked_view_set, require_manifest, view_set_names
from manifests.presets import preset_names
from training.models.clip import is_cached, is_tag
from training.paper_tables.judged_rows import Judged
from training.paper_tables.place import Place
from training.paper_tables.results import known_outcome
from training.paper_tables.runner import with_beginnings
from training.settings.fit_recipe import RECIPES

HUB = "hf-hub:"


@dataclass(frozen=True)
class Missing:
    """what: is not there; remedy: a command or a key. rows: that need it; stops: whether they cannot run without."""

    what: str
    remedy: str
    stops: bool
    is_file: bool = False
    rows: tuple[str, ...] = ()

    def line(self) -> str:
        """For a person."""
        return f"{self.what} ({', '.join(self.rows)}): {self.remedy}"


def missing(rows: Iterable[Judged], place: Place, header: str = "") -> list[Missing]:
    """All that is missing for rows that are not done yet, each thing once. header: of the table, with its builds."""
    found: dict[Missing, dict[str, None]] = {}
    for judged in with_beginnings(rows, place):
        if known_outcome(judged, place).status != "done":
            for each in _of_row(judged, header):
                found.setdefault(each, {})[judged.row.name] = None
    return [Missing(each.what, each.remedy, each.stops, each.is_file, tuple(names)) for each, names in found.items()]


def _of_row(judged: Judged, header: str) -> list[Missing]:
    builds = (*_of_shards(judged, header), *_of_columns(judged, header))
    return [*builds, *_of_depth(judged), *_of_weights(judged)]


def _of_columns(judged: Judged, header: str) -> Iterator[Missing]:
    """Builds that a column is judged on: the row's other figures are had without."""
    for figure in judged.figures if judged.shards else ():
        if figure.lacks:
            build = _build_of(figure.lacks, header) or f"--shards {figure.lacks}=BUILD"
            yield Missing(f"no build of {figure.lacks}", build, all(each.lacks for each in judged.figures))


def _of_depth(judged: Judged) -> Iterator[Missing]:
    """View sets on which a depth tower is judged: training may draw its maps from clouds, and so need none of them."""
    views, key = judged.recipe.judged_data.views, "data.views" if judged.recipe.every_view else "clip2point.depth"
    if not judged.recipe.has_depth_tower or "views" in judged.row.evaluate:
        return
    asked = [
        each for each in judged.figures if not any(word.startswith("data.views=") for word in each.column.arguments)
    ]
    for shards in dict.fromkeys(each.shards for each in asked if each.shards):
        told = shards == judged.shards and views == judged.recipe.data.views  # as what training reads
        if not told and asked_view_set(shards, views) is None:
            yield _no_view_set(shards, views, key, all(each.shards in (shards, None) for each in judged.figures))


def _no_view_set(shards: str, name: str, key: str, stops: bool) -> Missing:
    make = f"python -m pipeline views {name} --shards {shards}"
    others = f"{key}={'|'.join(view_set_names(shards)) or 'NAME'}"
    return Missing(f"{shards} has no view set {name}", make if name in preset_names() else others, stops)


def _of_shards(judged: Judged, header: str) -> Iterator[Missing]:
    data, variant, shards = judged.recipe.data, judged.row.variant, judged.shards
    if shards is None:
        build = _build_of(variant, header) or _build_command(judged.row.recipe)
        yield Missing(f"no build of {variant}", build, True)
        return
    manifest = require_manifest(shards, f"--shards {shards}")
    view_set = asked_view_set(shards, data.views)
    if not manifest.complete and not data.allow_incomplete:
        yield Missing(
            f"{shards} is not finished", f"{_build_command(judged.row.recipe)}, or data.allow_incomplete=true", True
        )
    if data.split not in manifest.splits:
        yield Missing(f"{shards} has no split {data.split}", f"data.split={'|'.join(manifest.splits)}", True)
    if judged.recipe.reads_pictures and view_set is None:
        yield _no_view_set(shards, data.views, "data.views", True)
    if judged.recipe.reads_pictures and view_set is not None and data.channel not in view_set.preset.channels:
        remedy = f"data.channel={'|'.join(view_set.preset.channels)}"
        yield Missing(f"view set {data.views} of {shards} has no channel {data.channel}", remedy, True)
    stored = manifest.recipe.get("num_points", data.num_points)
    if stored < data.num_points:
        remedy = f"points are repeated up to that; build with num_points={data.num_points}, or data.num_points={stored}"
        yield Missing(
            f"{shards} has clouds of {stored} points, fewer than the {data.num_points} of the recipe", remedy, False
        )


def _of_weights(judged: Judged) -> Iterator[Missing]:
    recipe, model = judged.recipe, judged.recipe.image.model
    given = {"image.pretrained": recipe.image.pretrained, "init.image": recipe.init.image}
    if judged.after is None:  # else they are its run, which is not there yet
        given |= {"init.all": recipe.init.all, "init.points": recipe.init.points}
    others = judged.recipe.init.model_dump(include={"teacher", "generator"})
    given |= {f"init.{name}": source for name, source in others.items()}
    for key, source in given.items():
        if key in judged.begins:
            continue
        if is_tag(model, source):
            if not is_cached(model, source):
                remedy = f"fetched when the first row begins; without a network give {key}=FILE"
                yield Missing(f"weights {source} of {model} are not in the cache", remedy, False)
        elif source and not source.startswith(HUB) and not Path(source).exists():
            tag = f", and no open_clip tag of {model}" if key in ("init.image", "image.pretrained") else ""
            run = f"a file, or a run of `{_fit_command('pretrain')}`" if key == "init.points" else "a file or a run"
            yield Missing(f"{key}={source}: no such file{tag}", f"name {run}", True, is_file=True)


def _build_of(variant: str, header: str) -> str:
    """The command of a table's header that makes this build, or empty."""
    return _first_command(header, r"\s+", rf"pipeline build .*--out \S*/{re.escape(variant)}(?: .*)?")


def _build_command(recipe: str) -> str:
    return _command_of(recipe, "pipeline build")


def _fit_command(recipe: str) -> str:
    return _command_of(recipe, "training fit")


def _command_of(recipe: str, program: str) -> str:
    """The first command of this program in the header of a recipe; a recipe of one's own may have none there."""
    path = RECIPES / f"{recipe}.toml" if not recipe.endswith(".toml") else Path(recipe)
    text = path.read_text() if path.is_file() else ""
    return _first_command(text, "   ", f"{program} .*") or f"python -m {program} ..."


def _first_command(header: str, indent: str, pattern: str) -> str:
    """The first `python -m` of a header, indented so, that goes on as the pattern does; in one line, or empty."""
    found = re.search(rf"^#{indent}(python -m {pattern})$", header.replace("\\\n#", ""), re.MULTILINE)
    return " ".join(found[1].split()) if found else ""
