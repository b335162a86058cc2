"""`weights --where`: every public file's kind is one that is recognised, and its keys are keys of a recipe."""

from __future__ import annotations

import json
import re

from training_runs import typed

from training.settings.fit_recipe import EVERY_KEY
from training.weights.public_files import FILES
from training.weights.tensor_names import KINDS, OTHER_TOWERS


def test_what_is_printed_is_what_the_program_takes() -> None:
    rows = json.loads(typed("weights", "--where", "--json")[0])
    assert {"openai_clip", "ulip", "ulip2", "point_bert", "dvae", "openshape", "uni3d"} == {row["kind"] for row in rows}
    for row in rows:
        assert row["kind"] in KINDS
        assert bool(row["use"]) == bool(row["fills"]) != bool(row["reason"])
        assert not (row["fills"] and row["kind"] in OTHER_TOWERS)
        assert all((row["where"], row["space"], "/" in row["project"]))
        assert set(re.findall(r"[a-z]+\.[a-z_]+(?==)", row["use"])) <= EVERY_KEY


def test_a_person_reads_the_same() -> None:
    words, _ = typed("weights", "--where")
    for file in FILES:
        assert all(each in words for each in (file.name, file.where, file.space, file.use, file.reason))


def test_a_file_or_where() -> None:
    for arguments in (("--where", "a.pt"), ()):
        assert typed("weights", *arguments, code=2)[1] == "weights needs a FILE or --where, one of the two"
