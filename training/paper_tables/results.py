"""What became of the rows of a table: their figures, kept in RUN/results, a file for each row, or row and column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from manifests import store
from manifests.records import json_text
from training.paper_tables.columns import EVALUATED, taken
from training.paper_tables.judged_rows import Figure, Judged
from training.paper_tables.place import Place

TERMS = ("C", "standardised", "classifier", "ways", "shots", "queries", "episodes", "std", "n_train", "votes")
FACTS = ("dataset", "partition", "split", "splits", "features", "space", "num_points", *TERMS)


@dataclass(frozen=True)
class Outcome:
    """What became of a row, of one seed. values: percent by column, of the student; error: why it failed, in a line.

    lacks: by column, why its figure is missing though the row is done; facts: by column, what its figure rests on.
    """

    status: Literal["done", "failed", "no shards", "not run"]
    values: dict[str, float] = field(default_factory=dict)
    n: int | None = None
    step: int | None = None
    error: str = ""
    lacks: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


Outcomes = dict[str, dict[int, Outcome]]  # by the row's name, and by seed


class _Result(BaseModel):
    """What is used of a file in RUN/results; that of a stage of others has no figures."""

    identity: str
    student: dict[str, Any] = {}
    values: dict[str, float] = {}
    facts: dict[str, Any] = {}
    n: int | None = None
    step: int | None = None


def known_outcome(judged: Judged, place: Place) -> Outcome:
    """What earlier calls found; `not run` while a figure is missing that could be had."""
    if judged.shards is None:
        return Outcome("no shards")
    if not judged.figures:
        there = _read(judged, place, None) is not None and (place.folder / judged.row.run).is_dir()
        return Outcome("done" if there else "not run")
    lacks = {name: f"no build of {each.lacks}" for each in judged.figures if each.lacks for name in each.values}
    possible = [each for each in judged.figures if not each.lacks]
    if not possible:
        return Outcome("no shards", lacks=lacks)
    found = [result for each in possible if (result := _read(judged, place, each)) is not None]
    status: Literal["done", "not run"] = "done" if len(found) == len(possible) else "not run"
    values = {name: value for each in found for name, value in each.values.items()}
    facts = {name: each.facts for each in found if each.facts for name in each.values}
    n, step = (found[0].n, found[0].step) if found else (None, None)
    return Outcome(status, values, n, step, "", lacks, facts)


def is_known(judged: Judged, place: Place, figure: Figure) -> bool:
    """Whether an earlier call found this figure."""
    return _read(judged, place, figure) is not None


def _read(judged: Judged, place: Place, figure: Figure | None) -> _Result | None:
    """The file of a figure, or of a stage; None where it is missing, damaged, or of something else."""
    identity = figure.identity if figure else judged.identity
    try:
        found = _Result.model_validate_json(store.read_text(place.result_path(judged, figure)))
        values = {name: float(found.student[name]) for name in EVALUATED} if found.student else found.values
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is judged again
    if found.identity != identity or (figure is not None and set(values) != set(figure.values)):
        return None
    return found.model_copy(update={"values": values})


def keep_stage(judged: Judged, place: Place) -> None:
    """Notes that a row which is not judged is trained."""
    _keep(judged, place, None, {})


def keep_figure(judged: Judged, place: Place, figure: Figure, result: dict[str, Any], task: int) -> None:
    """Keeps what a command printed for a figure. task: 0, or which of its `also`. Raises ValueError as `taken` does."""
    own = result if not task else result["also"][task - 1]
    values = {name: taken(own, path) for name, path in figure.values.items()}
    if figure.identity == judged.identity:
        kept = ("dataset", "split", "n", "step", "student", "teacher")
        _keep(judged, place, figure, {name: result[name] for name in kept})
        return
    row = own | (own["rows"][int(number)] if (number := _row_number(figure)) and "rows" in own else {})
    facts = {name: row[name] for name in FACTS if row.get(name) is not None}
    facts |= {"value": figure.column.value} if figure.column.command == "evaluate" else {}  # of parts: the arg-max rule
    count = next((own[name] for name in ("n", "n_test") if isinstance(own.get(name), int)), None)
    about = {"column": next(iter(values)), "values": values, "facts": facts, "n": count, "step": own.get("step")}
    _keep(judged, place, figure, about)


def _row_number(figure: Figure) -> str:
    """`1` of a value `rows.1.accuracy`, else empty."""
    (path,) = figure.values.values()
    parts = path.split(".")
    return parts[1] if len(parts) > 2 and parts[0] == "rows" and parts[1].isdigit() else ""


def _keep(judged: Judged, place: Place, figure: Figure | None, about: dict[str, Any]) -> None:
    identity = figure.identity if figure else judged.identity
    kept = about | {"identity": identity, "row": judged.row.name}
    kept |= {"evaluate": judged.row.evaluate} if figure else {}
    store.write_bytes(str(place.result_path(judged, figure)), (json_text(kept, indent=1) + "\n").encode())
