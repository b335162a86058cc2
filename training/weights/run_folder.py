"""Names inside a run: RUN/run.json, RUN/text/, RUN/checkpoints/step-00001200/."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from manifests import plugins
from manifests.config import load_toml
from manifests.errors import Refused, first_problem
from manifests.records import parse_json, read_json

log = logging.getLogger(__name__)

MODEL, TEACHER, STATE = "model.safetensors", "teacher.safetensors", "state.pt"
RECIPE, CLASSES = "recipe.toml", "run.json"
TEXT = "text/text.safetensors"


def step_folders(run: Path) -> list[Path]:
    """Finished checkpoint folders of a run, by step."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def last_step(path: Path) -> Path:
    """The last checkpoint folder of a run; any other path as it is."""
    folders = step_folders(path)
    return folders[-1] if folders else path


def recipe_of_file(file: Path) -> dict[str, Any] | None:
    """The recipe that made a weights file of ours: in its header (`weights --out`), else beside it; None without one.

    Raises Refused where it is damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            header = (opened.metadata() or {}).get("recipe")
    except (OSError, SafetensorError):
        header = None  # a file of torch has none
    if header is None:
        beside = file.parent / RECIPE
        return load_toml(beside) if beside.is_file() else None
    try:
        values = parse_json(header)
    except ValueError as error:
        raise Refused(f"{file}: the recipe in its header is damaged: {error}") from error
    return values if isinstance(values, dict) else None


@contextmanager
def with_its_plugins(about: dict[str, Any], where: str) -> Iterator[None]:
    """For a block that reads the recipe of a run. about: its run.json, which says with which plugins it was trained.

    None of them is run. Where one is not loaded and the recipe is refused, Refused names what to give; where another
    version of one is loaded, a warning does.
    """
    begun, now = about.get("plugins", {}), plugins.versions()
    for name in [name for name in begun if name in now and now[name] != begun[name]]:
        log.warning("%s was trained with another version of plugin %s", where, name)
    try:
        yield
    except Refused as error:
        lacking = [name for name in begun if name not in now]
        if not lacking:
            raise
        words = " ".join(f"--plugin {' '.join(name.split())[:100]}" for name in sorted(lacking)[:5])
        raise Refused(f"{where} was trained with {words}: give the same here") from error


class _Judged(BaseModel):
    """The pictures that evaluation shows where training saw others."""

    view_set: str
    preset: dict[str, Any]


class _About(BaseModel):
    """What other files of a run rely on in run.json; the rest of it is for people."""

    model_config = ConfigDict(extra="allow", frozen=True)

    dataset: str
    classes: list[str]
    prompt_names: list[str]
    parts: list[Annotated[int, Field(ge=1)]] = []
    view_set: str = ""
    shapes: dict[str, Any] = {}
    preset: dict[str, Any] = {}
    judged: _Judged | None = None
    pixel_mean: tuple[float, float, float] | None = None
    pixel_deviation: tuple[float, float, float] | None = None
    seconds: float = 0.0
    plugins: dict[str, str] = {}


def read_about(run: Path) -> dict[str, Any]:
    """run.json of a run. Raises Refused naming it when it is missing or damaged."""
    path = run / CLASSES
    try:
        values = read_json(str(path))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} is damaged: {error}") from error
    if values is None:
        raise Refused(f"{path} is missing")
    return parse_about(values, str(path))


def parse_about(values: dict[str, Any], where: str) -> dict[str, Any]:
    """What run.json says, of the types that it must have. Raises Refused naming `where` it stands."""
    try:
        return _About.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise Refused(f"{where} is damaged: {first_problem(error)}") from error
