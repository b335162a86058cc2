"""Files without class folders: every command that the end of their build names does what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
from builders import SMALL, write_off
from training_runs import ONE_STEP, typed

from pipeline.__main__ import main


def test_the_commands_at_the_end_of_a_build_without_classes_work(tmp_path: Path, capsys) -> None:
    for number in range(8):
        write_off(tmp_path / "mine" / f"{number}.off", 1 + number)
    changes = [*SMALL, "views.rgb12.image_size=64"]
    where = ["--source", f"{tmp_path}/mine", "--out", f"{tmp_path}/out", "--workers", "0"]
    assert main(["build", "meshes", *where, *changes]) == 0
    said = capsys.readouterr().err
    assert "no folder names a class" in said
    (inspect,) = re.findall(r"python -m pipeline (.*)", said)
    assert main([*shlex.split(inspect), "--png", f"{tmp_path}/sheet.png"]) == 0
    values = {"CHECKPOINT": f"{tmp_path}/run", "RUN": f"{tmp_path}/run", "RECIPE": "small_cross_most"}
    values |= {"features.npz": f"{tmp_path}/features.npz", "NAME,NAME": "cup,dinner_plate"}
    commands = {}
    for line in re.findall(r"python -m training (.*)", said):
        words = [values.get(word, word) for word in shlex.split(line.replace('["NAME", "NAME"]', '["cup", "plate"]'))]
        commands[words[0]] = words
    assert set(commands) == {"fit", "embed", "predict", "evaluate"}
    typed(*commands["fit"], *ONE_STEP)
    typed(*commands["embed"])
    assert len(np.load(tmp_path / "features.npz")["keys"]) == 8
    rows = json.loads(typed(*commands["predict"], "--json")[0])
    assert {row["label"] for row in rows} <= {"cup", "dinner_plate", "dinner plate"}
    assert all(row["error"] is None for row in rows)
    judged = json.loads(typed(*commands["evaluate"], "--json")[0])
    assert (judged["n"], judged["classes"]) == (8, ["cup", "dinner_plate"])
