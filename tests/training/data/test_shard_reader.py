"""Only what is used of a shard is read: bytes counted by the kernel, of local tars with and without recorded sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from builders import REPOSITORY, Commands

from manifests.errors import Refused
from manifests.samples import JSON, POINTS
from training.data.dataset import open_source
from training.data.loader import EpochSamples, Form, Loader, SupervisedSamples, UnlabelledSamples
from training.data.sample_index import DamagedShard
from training.data.shard_reader import read_joined
from training.settings.data import AugmentSettings, DataSettings

COUNTS = Path("/proc/self/io")
SETTINGS = DataSettings(num_points=8192, shuffle=2)
FORM = Form(image_size=224, patch=16, mask_cell=32, mask_ratio=0.3)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 objects of 8,192 points, 12 RGB pictures of 224 pixels and 12 of depth, in 2 shards."""
    out = tmp_path_factory.mktemp("full") / "out"
    changes = ("parametric.objects=5", "parametric.test_fraction=0", "shard_size=3", "num_points=8192")
    Commands(REPOSITORY)("build", "parametric", "--out", out, "--workers", 0, *changes, "views.rgb12.image_size=224")
    return out


@pytest.fixture(scope="module")
def older(full, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with records that do not tell the sizes of members."""
    out = tmp_path_factory.mktemp("older") / "out"
    shutil.copytree(full, out)
    for path in [*out.glob("shapes/*.json"), *out.glob("views/rgb12/train-*.json")]:
        record = json.loads(path.read_text())
        del record["sizes"], record["checks"]
        path.write_text(json.dumps(record))
    return out


def read_and_used(out: Path, stream: type[EpochSamples]) -> tuple[int, int]:
    """Bytes that an epoch reads, and bytes of the members it needs."""
    samples = stream(open_source(str(out), SETTINGS), SETTINGS, AugmentSettings(), FORM, 1, 0)
    used, before = 0, _bytes_read()
    for drawn in samples._drawn(0, [], 0, 1):
        assert set(drawn.shape.members) == ({POINTS} if stream is UnlabelledSamples else {POINTS, JSON})
        assert set(drawn.views.members) == {JSON, f"v{drawn.view:02d}.rgb.jpg"}
        used += sum(len(data) for sample in (drawn.shape, drawn.views) for data in sample.members.values())
    return _bytes_read() - before, used


def _bytes_read() -> int:
    counts = dict(line.split(": ") for line in COUNTS.read_text().splitlines())
    return int(counts["rchar"])


@pytest.mark.skipif(not COUNTS.exists(), reason="the kernel counts no bytes here")
@pytest.mark.parametrize("stream", [UnlabelledSamples, SupervisedSamples])
def test_bytes_read_are_those_used(full, older, stream) -> None:
    """Of 360 kB an object with 24 pictures 112 kB are used: read by their places, or past all headers."""
    for out, most in ((full, 1.05), (older, 1.3)):
        read, used = read_and_used(out, stream)
        assert used > 5 * 8192 * 12
        assert 1 <= read / used < most


def test_recorded_sizes_change_nothing_of_what_is_read(full, older) -> None:
    for shard, other in zip(
        open_source(str(full), SETTINGS).shards, open_source(str(older), SETTINGS).shards, strict=True
    ):
        assert shard.views_places.suffixes[:3] == ("json", "v00.depth.png", "v00.rgb.jpg")
        assert other.views_places.suffixes == ()
        numbers = range(len(shard.keys))
        assert list(read_joined(shard, numbers)) == list(read_joined(other, numbers))
        assert list(read_joined(shard, numbers[1:])) == list(read_joined(other, numbers))[1:]


def test_sizes_that_are_not_the_tars_are_found(full, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(full, out)
    path = out / "views/rgb12/train-00000.json"
    record = json.loads(path.read_text())
    sizes = record["sizes"]
    assert list(sizes) == sorted(sizes)
    assert sizes["v00.rgb.jpg"][0] % 512
    for change, words in (
        (
            {"v00.depth.png": [sizes["v00.depth.png"][0] - 512, *sizes["v00.depth.png"][1:]]},
            "found .* where its record",
        ),
        ({"v00.rgb.jpg": [sizes["v00.rgb.jpg"][0] + 1, *sizes["v00.rgb.jpg"][1:]]}, "v00.rgb.jpg"),
    ):
        path.write_text(json.dumps({**record, "sizes": {**sizes, **change}}))
        with pytest.raises(DamagedShard, match=rf"train-00000.tar: {record['keys'][0]}: .*{words}"):
            list(read_joined(open_source(str(out), SETTINGS).shards[0], [0]))
    for change in ({"json": [1]}, {"json": ["x", 1, 1]}, {"json": [10**9, 1, 1]}):
        path.write_text(json.dumps({**record, "sizes": {**sizes, **change}}))
        with pytest.raises(Refused, match=r"train-00000\.(tar .*is damaged|json: not a record)"):
            open_source(str(out), SETTINGS)


def test_an_object_store_gives_the_same(full, older) -> None:
    """By their places, and past headers; there files are read ahead in large blocks (manifests.store)."""
    fs = fsspec.filesystem("memory")
    for name, out in (("full", full), ("older", older)):
        fs.put(f"{out}/", f"/{name}/", recursive=True)
        there = open_source(f"memory://{name}", SETTINGS)
        for shard, here in zip(there.shards, open_source(str(out), SETTINGS).shards, strict=True):
            assert shard.shapes.startswith("memory://")
            assert list(read_joined(shard, [0, 1])) == list(read_joined(here, [0, 1]))
        fs.rm(f"/{name}", recursive=True)


@pytest.mark.gpu
def test_batches_lie_in_memory_that_a_gpu_reads(full) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = SETTINGS.model_copy(update={"workers": 1})
    loader = Loader(
        UnlabelledSamples(open_source(str(full), settings), settings, AugmentSettings(), FORM, 2, 0), pin=True
    )
    batch = next(iter(loader))
    assert batch.weak_image.is_pinned()
    assert batch.points.is_pinned()
    assert batch.to(torch.device("cuda")).strong_points.device.type == "cuda"
