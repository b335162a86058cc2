"""Names inside a run: RUN/run.json, RUN/text/, RUN/checkpoints/step-00001200/."""

from __future__ import annotations

from pathlib import Path

MODEL, TEACHER, STATE, RECIPE, CLASSES = (
    "model.safetensors",
    "teacher.safetensors",
    "state.pt",
    "recipe.toml",
    "run.json",
)
TEXT = "text/text.safetensors"


def step_folders(run: Path) -> list[Path]:
    """Finished checkpoint folders of a run, by step."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def last_step(path: Path) -> Path:
    """The last checkpoint folder of a run; any other path as it is."""
    folders = step_folders(path)
    return folders[-1] if folders else path
