"""Short trainings, and the command line of training in this process: importing torch takes seconds."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import webdataset as wds

from manifests.samples import encode_json, read_samples
from training.__main__ import main
from training.evaluation.evaluate import Options, examine
from training.weights.checkpoint import open_checkpoint

ONE_STEP = (
    "data.num_points=64",
    "optimizer.batch_size=8",
    "optimizer.steps=1",
    "log_every=1",
    "points.depth=1",
    "tensorboard=false",
)


@contextmanager
def _logged(err: io.StringIO) -> Iterator[None]:
    """Logging writes to `err` too: its handlers hold the stderr of the first command."""
    handler = logging.StreamHandler(err)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def typed(*arguments: object, code: int = 0) -> tuple[str, str]:
    """A command as a person types it: what it says on stdout and, with log messages, on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with _logged(err), redirect_stdout(out), redirect_stderr(err):
        assert main([str(argument) for argument in arguments]) == code, err.getvalue()
    return out.getvalue(), err.getvalue().strip()


def evaluated(checkpoint: Path | str, shards: Path | str, prompts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The object that `evaluate --json` prints."""
    return examine([open_checkpoint(str(checkpoint))], str(shards), options=Options(prompts=prompts))[0].result()


def relabelled(shards: Path, out: Path, label_of: Callable[[str, int], int | None]) -> Path:
    """A copy of a build whose labels are `label_of(key, label)`."""
    shutil.copytree(shards, out)
    for tar in sorted((out / "shapes").glob("*.tar")):
        file = io.BytesIO()
        writer = wds.TarWriter(file, encoder=False, mtime=0, user="", group="")
        offsets = []
        for _, sample in read_samples(io.BytesIO(tar.read_bytes())):
            label = label_of(sample.key, sample.json["label"])
            values = {**sample.json, "label": label, "class": sample.json["class"] if label is not None else None}
            offsets.append(writer.tarstream.offset)
            writer.write({"__key__": sample.key, **sample.members, "json": encode_json(values)})
        writer.close()
        tar.write_bytes(file.getvalue())
        record = json.loads(tar.with_suffix(".json").read_text())
        older = {name: value for name, value in record.items() if name not in ("sizes", "checks")}
        tar.with_suffix(".json").write_text(json.dumps({**older, "offsets": offsets}))
    return out
