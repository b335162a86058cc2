"""The demonstration: every stage and its report on a handful of objects; and, slow, what it must show."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trimesh
from builders import REPOSITORY
from training_runs import typed

from manifests.plain_text import PlainConsole
from training.demo import DemoSettings, _changes_of_trainings, main
from training.demo_stages import Stages

SMALL = (
    *("--build", "parametric.objects=57", "--build", "parametric.test_fraction=0.5"),
    *("--build", "parametric.val_fraction=0.0", "--build", "num_points=128", "--build", "fps_prefix=128"),
    *("data.num_points=96", "optimizer.batch_size=8", "optimizer.steps=4", "log_every=2", "points.depth=1"),
)


def demo(out: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "training.demo", "--out", str(out), *map(str, arguments)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A demonstration that ran through, and what it said."""
    out = tmp_path_factory.mktemp("finished") / "demo"
    done = demo(out, "--seed", 3, "--workers", 0, *SMALL)
    return out, done.stdout + done.stderr


@pytest.mark.slow
def test_every_stage_and_its_report(finished, tmp_path) -> None:
    out, printed = finished
    assert "zero-shot" in printed
    found = json.loads((out / "report.json").read_text())
    for row in ("zero_shot", "self_training", "cross_most"):
        assert all(0 <= found["table"][row][column] <= 100 for column in ("image", "image_star", "points"))
    assert found["n"] == 19
    assert found["seed"] == 3
    assert found["seconds"] > 1
    assert found["max_rss_mb"] > 300
    assert (out / "report.html").stat().st_size > 20_000
    commands = [shlex.split(line) for line in (out / "commands.txt").read_text().splitlines()]
    assert [command[3:5] for command in commands if command[3] == "pipeline"] == [["pipeline", "build"]] * 2
    assert len(commands) == 6
    assert (out / "logs/cross_most.log").stat().st_size > 0


@pytest.mark.slow
def test_its_last_line_is_a_command_that_answers(finished, tmp_path) -> None:
    out, printed = finished
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.off")
    command = shlex.split(printed.strip().splitlines()[-1].partition(": python -m training ")[2])
    assert command == ["predict", str(out / "cross_most"), "FILE..."]
    (row,) = json.loads(typed(*command[:2], tmp_path / "box.off", "--json")[0])
    assert (row["error"], row["towers"]) == (None, ["image", "points"])


@pytest.mark.slow
def test_a_demonstration_that_is_interrupted_goes_on(finished, tmp_path) -> None:
    out = tmp_path / "demo"
    arguments = ("--out", str(out), "--seed", "3", "--workers", "0", *SMALL)
    command = [sys.executable, "-m", "training.demo", *arguments]
    alone = {"cwd": REPOSITORY, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **alone)
    try:
        deadline = time.monotonic() + 200
        while not (out / "pretrain/checkpoints").is_dir() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        message = process.communicate(timeout=100)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "run the same again to go on" in message.splitlines()[-1]
    kept = [*(out / "source").rglob("*.tar"), out / "pretrain/run.json"]
    times = [path.stat().st_mtime_ns for path in kept]
    before = json.loads((out / "demo.json").read_text())["seconds"]
    demo(out, "--seed", 3, "--workers", 0, *SMALL)
    assert times[:-1] == [path.stat().st_mtime_ns for path in kept[:-1]]
    found, reference = (json.loads((place / "report.json").read_text()) for place in (out, finished[0]))
    assert found["table"] == reference["table"]
    assert found["seconds"] > before


def test_another_demonstration_in_the_same_folder_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["--out", str(tmp_path)]) == 2
    assert "is not empty and no demonstration" in " ".join(capsys.readouterr().err.split())
    settings = {"seed": 0, "quick": True, "changes": {}, "builds": []}
    (tmp_path / "demo.json").write_text(json.dumps({"settings": settings, "seconds": 1.0, "max_rss_mb": 1.0}))
    assert main(["--out", str(tmp_path), "--quick", "--seed", "1"]) == 2
    assert "holds a demonstration of other settings" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json", "file"]


def test_typed_keys_win_over_those_of_quick() -> None:
    settings = DemoSettings(0, True, {"pretrain": ["optimizer.steps=7"]}, ["parametric.objects=57"])
    assert settings.changes_of("pretrain") == ["optimizer.steps=550", "optimizer.steps=7"]
    assert settings.changes_of("build_source")[-1] == "parametric.objects=57"


def test_a_key_goes_to_the_trainings_that_read_it(tmp_path, capsys) -> None:
    found = _changes_of_trainings(["labels.threshold=0.5", "weights.mim=0", "log_every=5"])
    assert found["pretrain"] == found["oracle"] == ["log_every=5"]
    assert found["self_training"] == found["cross_most"] == ["labels.threshold=0.5", "weights.mim=0", "log_every=5"]
    for wrong, words in (("crosspoint.intra=0", "no training of the demonstration reads"), ("log_evry=1", "log_every")):
        assert main(["--out", str(tmp_path / "out"), wrong]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_stage_that_fails_is_named_and_the_others_end(tmp_path) -> None:
    message = demo(tmp_path / "demo", "--workers", 0, *SMALL, "data.split=absent", code=3).stderr
    assert "pretrain failed (" in message
    assert "split" in message
    assert "absent" in message
    assert "pretrain.log" in message


def test_ending_leaves_nothing_running(tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    stages = Stages(tmp_path, None)
    sleeping = stages.start("sleeping", "http.server", "0")
    stages.end_all()
    assert sleeping.process.poll() is not None


def test_the_status_is_a_line_of_the_terminal_a_stage(tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    stages = Stages(tmp_path, PlainConsole(width=80, file=io.StringIO()))
    started = [stages.start(name, "http.server", "0") for name in ("pretrain", "build_target")]
    stages.end_all()
    started[0].log.write_text(f"first\n0:23:08 left  step 50/300  loss 10.2  {'right_image 0.07  ' * 9}\x1b[1m\n")
    started[1].log.write_text("")
    told = stages.progress(started).plain.split("\n")
    assert told[0].startswith("pretrain      0:23:08 left  step 50/300  loss 10.2")
    assert [line.strip() for line in told[1:]] == ["build_target  begins"]
    assert max(map(len, told)) < 79  # a mark and a space stand before the first


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quick_demo_adapts_without_labels(tmp_path) -> None:
    demo(tmp_path / "demo", "--quick", "--seed", 0)
    found = json.loads((tmp_path / "demo/report.json").read_text())
    gain = found["gains"]["cross_most"]["zero_shot"]
    assert found["table"]["cross_most"]["mean"] > found["table"]["zero_shot"]["mean"]
    assert gain["interval"][0] > 0
    assert "points over zero-shot" in (tmp_path / "demo/report.md").read_text().splitlines()[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_shows_what_the_paper_claims(tmp_path) -> None:
    """Adapting without labels beats zero-shot, and learning across modalities beats each modality on its own."""
    demo(tmp_path / "demo", "--seed", 0)
    found = json.loads((tmp_path / "demo/report.json").read_text())
    mean = {
        row: sum(values[c] for c in ("image", "image_star", "points")) / 3 for row, values in found["table"].items()
    }
    assert found["n"] >= 600
    assert 35 <= mean["zero_shot"] <= 65
    assert mean["cross_most"] >= mean["zero_shot"] + 10
    assert mean["cross_most"] >= mean["self_training"] + 4
    assert found["max_rss_mb"] < 8000
