"""Options that name a place to write to: a URL is refused in one line where only a local disk can hold it."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from training_runs import ONE_STEP

from manifests import store
from training import demo, oracle
from training.__main__ import main

REFUSED = {
    "fit": (main, ("fit", "small_cross_most", "--shards", "SHARDS", "--run", "URL")),
    "fit, dry run": (main, ("fit", "small_cross_most", "--shards", "SHARDS", "--run", "URL", "--dry-run")),
    "evaluate": (main, ("evaluate", "RUN", "--shards", "SHARDS", "--out", "URL")),
    "report": (main, ("report", "RUN", "--shards", "SHARDS", "--out", "URL")),
    "table": (main, ("table", "5", "--shards", "SHARDS", "--run", "URL")),
    "oracle": (oracle.main, ("small_cross_most", "--shards", "SHARDS", "--run", "URL")),
    "demo": (demo.main, ("--out", "URL")),
}
WRITTEN = {
    "embed": ("embed", "RUN", "--shards", "SHARDS", "--out", "URL/features.npz"),
    "weights": ("weights", "RUN", "--out", "URL/model.safetensors"),
}


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with redirect_stderr(io.StringIO()):
        assert main(["fit", "small_cross_most", "--shards", str(shards), "--run", str(folder), *ONE_STEP]) == 0
    return folder


def typed(program, arguments: tuple[str, ...], url: str, shards: Path, run: Path | None) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    places = {"URL": url, "SHARDS": str(shards), "RUN": str(run)}
    for name, place in places.items():
        arguments = tuple(text.replace(name, place) for text in arguments)
    err = io.StringIO()
    with redirect_stderr(err), redirect_stdout(io.StringIO()):
        code = program(list(arguments))
    return code, err.getvalue().strip()


@pytest.mark.parametrize("name", REFUSED)
def test_a_url_becomes_no_local_folder(shards, run, tmp_path, monkeypatch, name: str) -> None:
    """`--run s3://bucket/run` would train into a folder `s3:` of the current one, which nobody looks for."""
    monkeypatch.chdir(tmp_path)
    program, arguments = REFUSED[name]
    code, err = typed(program, arguments, "s3://bucket/run", shards, run)
    option = arguments[arguments.index("URL") - 1]
    assert (code, err) == (2, f"{option} s3://bucket/run: this is written to a local disk; name a path of this machine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITTEN)
def test_what_takes_a_url_writes_there(shards, run, tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"memory://local-paths-{name}"
    assert typed(main, WRITTEN[name], url, shards, run)[0] == 0
    assert store.list_names(url) == [WRITTEN[name][-1].rpartition("/")[2]]
    assert not list(tmp_path.iterdir())


def test_a_file_url_is_a_path_of_this_machine(shards, run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(main, REFUSED["evaluate"][1], f"file://{tmp_path}/figures", shards, run)[0] == 0
    assert (tmp_path / "figures" / "evaluate.json").is_file()
    assert typed(main, WRITTEN["weights"], f"file://{tmp_path}", shards, run)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "model.safetensors"]
