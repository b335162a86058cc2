"""Prompts of the text-initialised classifier: written out, the name of a shipped set, or a file with one a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from manifests import store

FOLDER = Path(__file__).parent.parent / "prompt_sets"
DEFAULT_PROMPTS = ("a photo of a {}.", "a 3D model of a {}.")  # paper, section 3.1


def prompt_set_names() -> list[str]:
    """Names of the shipped sets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a file, one a line; empty lines and lines that begin with # are left out."""
    lines = (line.strip() for line in store.read_text(path).splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def names_a_file(value: str) -> bool:
    """Whether a recipe's text is no prompt and no shipped set, and so a file."""
    return "{}" not in value and value not in prompt_set_names()


def _written_out(value: object) -> object:
    """A name or a path as the prompts that it stands for: a recipe that is saved holds the prompts themselves."""
    if not isinstance(value, str):
        return value
    if "{}" in value:
        return (value,)
    path = FOLDER / f"{value}.txt" if value in prompt_set_names() else Path(value)
    try:
        return read_prompts(path)
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(prompt_set_names())
        raise ValueError(f"{value} is no prompt with {{}}, no shipped set ({names}) and no readable file") from error


def _each_names_the_class(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """A prompt without `{}` would give every class the same column."""
    wrong = [prompt for prompt in prompts if prompt.count("{}") != 1 or set("{}") & set(prompt.replace("{}", ""))]
    if wrong or not prompts:
        raise ValueError(f"a prompt needs one {{}} for the class name, got {repr(wrong[0]) if wrong else 'no prompt'}")
    return prompts


Prompts = Annotated[tuple[str, ...], BeforeValidator(_written_out), AfterValidator(_each_names_the_class)]
