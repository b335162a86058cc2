"""The join of shapes and views, the order of an epoch, and what raises."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from manifests.errors import Refused
from training.data.batch import Batch, RawBatch
from training.data.dataset import open_source
from training.data.labels import labelled
from training.data.loader import Form, Loader, SupervisedSamples, UnlabelledSamples
from training.data.sample_index import DamagedShard
from training.data.sampler import went_on
from training.settings.data import AugmentSettings, DataSettings, LabelledAugmentSettings

FORM = Form(image_size=64, patch=8, mask_cell=16, mask_ratio=0.3)
SETTINGS = DataSettings(views="rgb12", num_points=128, shuffle=16)


def keys_of(samples: UnlabelledSamples, epoch: int, workers: int = 0) -> list[str]:
    samples.set_epoch(epoch)
    return [key for batch in DataLoader(samples, batch_size=None, num_workers=workers) for key in batch.keys]


def make(shards, batch_size: int = 4, seed: int = 0, **options: int) -> UnlabelledSamples:
    return UnlabelledSamples(
        open_source(str(shards), SETTINGS), SETTINGS, AugmentSettings(), FORM, batch_size, seed, **options
    )


def test_a_batch_holds_no_label_and_everything_else(shards) -> None:
    samples = UnlabelledSamples(open_source(str(shards), SETTINGS), SETTINGS, AugmentSettings(), FORM, 4, 0)
    loader = Loader(samples)
    batch = next(iter(loader))
    assert "label" not in vars(batch)
    assert batch.weak_image.shape == batch.strong_image.shape == (4, 3, 64, 64)
    assert batch.points.shape == (4, 128, 3)
    assert batch.image_mask.sum(dim=(1, 2)).tolist() == [4 * int(np.ceil(0.3 * 16))] * 4
    assert ((batch.points_draw >= 0) & (batch.points_draw < 1)).all()
    assert samples.num_batches == samples.source.total // 4 == 9


def test_an_epoch_depends_on_its_seed_and_number(shards) -> None:
    samples = make(shards)
    first, second = keys_of(samples, 0), keys_of(samples, 1)
    assert len(first) == len(set(first)) == samples.source.total // 4 * 4
    assert first != second
    assert keys_of(make(shards), 0) == first
    assert keys_of(make(shards, seed=1), 0) != first


def test_the_teacher_sees_a_random_part_of_a_frame_that_is_not_square(shards, monkeypatch) -> None:
    """Redwood, CO3D: at each epoch another part, and everything else of the sample as with the middle one."""
    ramp = np.broadcast_to(np.arange(192, dtype=np.uint8)[:, None], (64, 192, 3))
    monkeypatch.setattr(UnlabelledSamples, "_picture", lambda self, drawn: ramp)

    def epoch(number: int, **augment: str) -> dict[str, RawBatch]:
        samples = UnlabelledSamples(
            open_source(str(shards), SETTINGS), SETTINGS, AugmentSettings(**augment), FORM, 4, 0
        )
        samples.set_epoch(number)
        return {batch.keys: batch for batch in samples}

    random, middle = epoch(0), epoch(0, weak_crop="middle")
    starts = {int(image[0, 0, 0]) for batch in random.values() for image in batch.weak_image}
    assert len(starts) > 20
    assert min(starts) < 20
    assert max(starts) > 108
    for keys, batch in middle.items():
        assert (batch.weak_image[:, 0, 0, 0] == 64).all()
        assert torch.equal(batch.strong_image, random[keys].strong_image)
        assert torch.equal(batch.image_mask, random[keys].image_mask)
        assert torch.equal(batch.seed, random[keys].seed)
    again = {key: image for batch in epoch(1).values() for key, image in zip(batch.keys, batch.weak_image, strict=True)}
    before = {key: image for batch in random.values() for key, image in zip(batch.keys, batch.weak_image, strict=True)}
    assert sum(not torch.equal(again[key], before[key]) for key in again.keys() & before.keys()) > 20


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_readers_of_all_ranks_share_every_epoch(shards, world: int, alone: bool) -> None:
    """Global batches of 8, 6 or 9 of 38 objects, or 2, 4 or 6 of the 7 of one shard; as many workers as 0 to 3."""
    source = open_source(str(shards), SETTINGS)
    if alone:
        source = replace(source, shards=source.shards[:1])
    batch_size = 2 if alone else {1: 8, 2: 3, 3: 3}[world]
    everyone = {key for shard in source.shards for key in shard.keys}
    assert len(everyone) % (batch_size * world)
    rested: set[str] = set()
    for epoch in range(3):
        seen = []
        for workers in range(4):
            ranks = [
                keys_of(
                    UnlabelledSamples(source, SETTINGS, AugmentSettings(), FORM, batch_size, 0, rank=rank, world=world),
                    epoch,
                    workers if epoch < 2 else 0,
                )
                for rank in range(world)
            ]
            assert {len(keys) for keys in ranks} == {len(everyone) // (batch_size * world) * batch_size}
            together = [key for keys in ranks for key in keys]
            assert len(together) == len(set(together))
            seen.append([set(keys) for keys in ranks])
        assert all(found == seen[0] for found in seen)
        assert rested <= set.union(*seen[0])
        rested = everyone - set.union(*seen[0])
        assert 0 < len(rested) < batch_size * world


def tensors_by_key(samples, workers: int) -> dict[str, tuple[torch.Tensor, ...]]:
    found = {}
    for batch in DataLoader(samples, batch_size=None, num_workers=workers):
        values = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
        found |= {key: tuple(value[i] for value in values) for i, key in enumerate(batch.keys)}
    return found


@pytest.mark.parametrize("stream", [UnlabelledSamples, SupervisedSamples])
def test_a_sample_does_not_depend_on_its_reader(shards, stream) -> None:
    source = open_source(str(shards), SETTINGS)
    options = (source, SETTINGS, AugmentSettings(), FORM)
    alone = tensors_by_key(stream(*options, 4, 0), 0)
    shared = tensors_by_key(stream(*options, 4, 0), 2)
    ranks = [tensors_by_key(stream(*options, 2, 0, rank=rank, world=2), rank) for rank in range(2)]
    assert set(alone) == set(shared) == set(ranks[0]) | set(ranks[1])
    for key, tensors in alone.items():
        for other in (shared[key], (ranks[0] | ranks[1])[key]):
            assert all(torch.equal(a, b) for a, b in zip(tensors, other, strict=True))


def drawn(samples: UnlabelledSamples, epoch: int) -> dict[str, dict[str, torch.Tensor]]:
    """What each object of an epoch was given, by name."""
    samples.set_epoch(epoch)
    found = {}
    for batch in samples:
        values = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        found |= {key: {name: value[i] for name, value in values.items()} for i, key in enumerate(batch.keys)}
    return found


def alike(first: dict, second: dict) -> dict[str, float]:
    """Share of the objects of both epochs that were given the same, by name."""
    keys = sorted(set(first) & set(second))
    assert len(keys) >= 30
    return {
        name: sum(torch.equal(first[key][name], second[key][name]) for key in keys) / len(keys)
        for name in first[keys[0]]
    }


def test_every_object_is_drawn_anew_in_each_epoch_and_seed(shards) -> None:
    """View (one of three), augmentations, masks and draws; or a long run would see the same few pictures for ever."""
    first = drawn(make(shards), 0)
    assert alike(first, drawn(make(shards), 0)) == dict.fromkeys(next(iter(first.values())), 1.0)
    for other in (drawn(make(shards), 1), drawn(make(shards, seed=1), 0)):
        shares = alike(first, other)
        assert shares.pop("points") == 1
        assert 0.1 < shares.pop("weak_image") < 0.65
        assert set(shares) == {"strong_image", "seed", "image_mask", "points_draw", "modality_draw"}
        assert max(shares.values()) < 0.1
    for name in ("seed", "image_mask", "points_draw", "modality_draw"):
        different = {tuple(values[name].flatten().tolist()) for values in first.values()}
        assert len(different) > 0.9 * len(first), name
    draws = torch.stack([values["modality_draw"] for values in first.values()])
    assert 0.25 < (draws < 0.5).float().mean() < 0.75


def test_every_view_is_drawn_as_often(shards) -> None:
    """Of three views, by three dozen objects in eight epochs."""
    pictures: dict[str, Counter] = {}
    samples = make(shards)
    for epoch in range(8):
        for key, values in drawn(samples, epoch).items():
            pictures.setdefault(key, Counter())[values["weak_image"].numpy().tobytes()] += 1
    assert max(len(seen) for seen in pictures.values()) == 3
    assert sum(len(seen) for seen in pictures.values()) > 2.6 * len(pictures)


def test_the_order_inside_a_reader_differs_between_epochs(shards) -> None:
    """Of a single shard with all of it in the buffer: only shuffling moves the samples of an epoch about."""
    source = open_source(str(shards), SETTINGS)
    alone = replace(source, shards=source.shards[:1])
    samples = UnlabelledSamples(alone, SETTINGS, AugmentSettings(), FORM, len(alone.shards[0].keys), 0)
    orders = {tuple(keys_of(samples, epoch)) for epoch in range(6)}
    assert len(orders) == 6
    assert tuple(alone.shards[0].keys) not in orders


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_batches_change_nothing_of_the_others(shards, workers: int) -> None:
    """Also with a buffer smaller than a reader's part; the last epoch begins with what the first left over."""
    for shuffle in (3, 16):
        settings = SETTINGS.model_copy(update={"workers": workers, "shuffle": shuffle})
        samples = UnlabelledSamples(open_source(str(shards), settings), settings, AugmentSettings(), FORM, 4, 0)
        loader = Loader(samples)
        samples.set_epoch(1)
        whole = list(loader)
        for skip in (1, 4, samples.num_batches):
            samples.set_epoch(1, [(1, workers, skip)])
            rest = list(loader)
            assert len(rest) == samples.num_batches - skip
            for batch, again in zip(whole[skip:], rest, strict=True):
                assert batch.keys == again.keys
                for name, value in vars(batch).items():
                    assert not isinstance(value, torch.Tensor) or torch.equal(value, getattr(again, name)), name


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_readers_go_on_over_the_ends_of_epochs(shards, workers: int) -> None:
    """The batches are those of epochs one by one, in order, and the processes stay; also after a break within one."""
    settings = SETTINGS.model_copy(update={"workers": workers})
    source = open_source(str(shards), settings)
    samples = UnlabelledSamples(source, settings, AugmentSettings(), FORM, 8, 0)
    loader = Loader(samples)
    expected = [keys_of(UnlabelledSamples(source, settings, AugmentSettings(), FORM, 8, 0), e, workers) for e in (0, 1)]
    assert samples.num_batches == 4
    for first in (0, 3):
        found, readers = [], []
        for epoch, given in ((0, [(1, workers, first)]), (1, [])):
            samples.set_epoch(epoch, given)
            found.append([key for batch in loader for key in batch.keys])
            readers.append(sorted(child.pid for child in multiprocessing.active_children()))
        assert found == [expected[0][8 * first :], expected[1]]
        assert len(readers[0]) == workers
        assert readers[0] == readers[1]
    samples.set_epoch(1)  # not what comes next: the readers begin anew
    assert [key for batch in loader for key in batch.keys] == expected[1]
    iter(loader).close()
    samples.set_epoch(1, [(1, workers, 2)])
    assert next(iter(loader)).keys == tuple(expected[1][16:24])


def test_other_ranks_and_workers_share_the_rest_of_an_epoch(shards) -> None:
    """Three global batches by 2 ranks of 2 workers, one by 4 ranks, the rest by one: each sample once, as it always is.

    Fewer shards than readers (6 shards of 7 or fewer, 8 readers at first), and 4 of 38 objects that rest.
    """
    source = open_source(str(shards), SETTINGS)

    def ranks_of(world: int, workers: int, given: list) -> list[dict[str, tuple[torch.Tensor, ...]]]:
        size, found = 4 // world, []
        for rank in range(world):
            samples = UnlabelledSamples(source, SETTINGS, AugmentSettings(), FORM, size, 0, rank=rank, world=world)
            samples.set_epoch(1, given)
            assert samples.left == 9 - sum(batches for _, _, batches in given)
            found.append(tensors_by_key(samples, workers))
        return found

    whole = ranks_of(1, 0, [])[0]
    seen: list[str] = []
    given: list[tuple[int, int, int]] = []
    for world, workers, batches in ((2, 2, 3), (4, 1, 1), (1, 3, 5)):
        for found in ranks_of(world, workers, given):
            keys = list(found)[: batches * 4 // world]
            seen += keys
            for key in keys:
                assert all(torch.equal(a, b) for a, b in zip(found[key], whole[key], strict=True))
        given = went_on(given, world, workers, batches)
    assert sorted(seen) == sorted(whole)
    assert len(seen) == 36


@pytest.mark.parametrize("given", [[(1, 1, 10)], [(1, 1, 5), (2, 0, 5)], [(3, 1, 1)], [(0, 1, 1)], [(1, 1, -1)]])
def test_segments_that_no_epoch_can_have_are_refused(shards, given) -> None:
    with pytest.raises(Refused, match="an epoch of 9 batches of 4 cannot have been given out"):
        make(shards).set_epoch(0, given)


def test_skipped_batches_are_not_read(shards, tmp_path) -> None:
    """Every picture of the skipped objects is damaged."""
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    samples = make(out)
    skipped = set(keys_of(samples, 0)[:20])
    for tar in (out / "views/rgb12").glob("train-*.tar"):
        record, data = json.loads(tar.with_suffix(".json").read_text()), tar.read_bytes()
        bounds = [*record["offsets"], len(data)]
        parts = [data[a:b] for a, b in itertools.pairwise(bounds)]
        damaged = [
            part.replace(b"\xff\xd8\xff", b"\x00\xd8\xff") if key in skipped else part
            for key, part in zip(record["keys"], parts, strict=True)
        ]
        tar.write_bytes(b"".join(damaged))
    with pytest.raises(DamagedShard):
        keys_of(samples, 0)
    samples.set_epoch(0, [(1, 1, 5)])
    rest = [key for batch in DataLoader(samples, batch_size=None) for key in batch.keys]
    assert len(rest) == 16
    assert not skipped & set(rest)


def test_depth_is_mapped_as_the_preset_says(shards) -> None:
    names = [p.name for p in (shards / "views").iterdir() if p.name.startswith("depth10")]
    settings = SETTINGS.model_copy(update={"views": names[0], "channel": "depth"})
    loader = Loader(UnlabelledSamples(open_source(str(shards), settings), settings, AugmentSettings(), FORM, 4, 0))
    batch = next(iter(loader)).to(torch.device("cpu"))
    white = (1 - 0.48145466) / 0.26862954
    assert batch.weak_image[:, 0].max().item() == pytest.approx(white, abs=1e-5)
    assert (batch.weak_image[:, 0] < white - 0.5).float().mean() > 0.05


def test_evaluation_sees_all_views_and_labels(shards) -> None:
    settings = SETTINGS.model_copy(update={"split": "test"})
    source = open_source(str(shards), settings)
    found = list(labelled(source, settings, 64, range(3), 8))
    assert sum(len(part.labels) for part in found) == source.total
    assert found[0].pictures.shape == (8, 3, 3, 64, 64)
    assert source.manifest.classes[found[0].labels[0]] == found[0].keys[0].rpartition("_")[0]


def test_evaluation_sees_clouds_about_their_centre_at_radius_one(shards) -> None:
    """As the weak clouds of training are but for a tenth; a shorter prefix of a cloud has another centre."""
    settings = SETTINGS.model_copy(update={"split": "test"})
    for part in labelled(open_source(str(shards), settings), settings, 64, range(3), 8):
        assert part.points.mean(dim=1).abs().max() < 1e-5
        torch.testing.assert_close(part.points.norm(dim=2).amax(dim=1), torch.ones(len(part.keys)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": "rgb13"}, ["data.views=rgb13", "rgb12"]),
        ({"split": "tset"}, ["data.split=tset", "test, train"]),
        ({"channel": "gray"}, ["data.channel=gray", "rgb, depth"]),
    ],
)
def test_wrong_settings_are_refused(shards, changes: dict, words: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        open_source(str(shards), SETTINGS.model_copy(update=changes))
    assert all(word in str(caught.value) for word in words)


def test_views_of_other_shapes_are_refused(shards, tmp_path) -> None:
    """Or pictures of one object would be taught with the cloud of another: the view set, and a single shard of it."""
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    for path, name, words in (
        (out / "views/rgb12/manifest.json", "shapes_hash", "was drawn from other shapes"),
        (out / "views/rgb12/train-00001.json", "hash", r"views/rgb12/train-00001\.tar .* of another build"),
        (out / "shapes/train-00001.json", "hash", r"shapes/train-00001\.tar .* of another build"),
    ):
        whole = path.read_text()
        values = json.loads(whole)
        path.write_text(json.dumps({**values, name: "0" * len(values[name])}))
        with pytest.raises(Refused, match=words):
            make(out)
        path.write_text(whole)
    assert make(out).source.total == make(shards).source.total


def test_a_batch_larger_than_the_data_is_refused(shards) -> None:
    with pytest.raises(Refused, match=r"optimizer.batch_size=64 is more than the \d+ objects"):
        make(shards, batch_size=64)


def test_an_empty_split_is_refused(shards) -> None:
    source = replace(open_source(str(shards), SETTINGS), shards=())
    with pytest.raises(Refused, match=r"data.split=train has no objects"):
        UnlabelledSamples(source, SETTINGS, AugmentSettings(), FORM, 4, 0)


def test_damage_is_refused_or_raises_naming_file_and_key(shards, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    tar = out / "views/rgb12/train-00001.tar"
    record = json.loads(tar.with_suffix(".json").read_text())
    whole = tar.read_bytes()
    tar.write_bytes(whole[: record["offsets"][-1]])  # at a member's boundary: silent, were it not for the record
    with pytest.raises(ValueError, match=rf"train-00001.tar: .*{record['keys'][-1]}"):
        keys_of(make(out, batch_size=2), 0)
    tar.write_bytes(whole[: record["offsets"][-1] + 700])
    with pytest.raises(ValueError, match=r"train-00001\.tar"):
        keys_of(make(out, batch_size=2), 0)
    tar.unlink()
    with pytest.raises(Refused, match=r"train-00001\.tar or its record is missing"):
        make(out)
    assert make_incomplete(out).source.total < make(shards).source.total
    tar.write_bytes(whole)
    record["keys"][0] = "somebody_else"
    tar.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(Refused, match="does not fit"):
        make(out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(Refused, match="allow_incomplete"):
        make(out)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_bytes_raise_one_line_naming_file_and_key(shards, tmp_path, workers: int) -> None:
    """A picture's first byte is flipped in every view of one object, then a header of its cloud is."""
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    settings = SETTINGS.model_copy(update={"workers": workers})
    for tar, member, flipped in (
        (out / "views/rgb12/train-00001.tar", b"\xff\xd8\xff", b"\x00\xd8\xff"),
        (out / "shapes/train-00001.tar", b"\x93NUMPY", b"\x00NUMPY"),
    ):
        record = json.loads(tar.with_suffix(".json").read_text())
        whole = tar.read_bytes()
        first, second = record["offsets"][1:3]
        tar.write_bytes(whole[:first] + whole[first:second].replace(member, flipped) + whole[second:])
        loader = Loader(UnlabelledSamples(open_source(str(out), settings), settings, AugmentSettings(), FORM, 1, 0))
        with pytest.raises(DamagedShard) as caught:
            list(loader)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{tar}: {record['keys'][1]}: ")
        tar.write_bytes(whole)


def test_a_tar_that_goes_away_is_named(shards, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    samples = make(out)
    (out / "shapes/train-00002.tar").unlink()
    with pytest.raises(DamagedShard, match=r"train-00002\.tar: No such file"):
        keys_of(samples, 0)


def make_incomplete(out) -> UnlabelledSamples:
    settings = SETTINGS.model_copy(update={"allow_incomplete": True})
    return UnlabelledSamples(open_source(str(out), settings), settings, AugmentSettings(), FORM, 4, 0)


def test_declared_failures_are_left_out_and_counted(shards, tmp_path, caplog) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    path = out / "views/rgb12/train-00000.json"
    record = json.loads(path.read_text())
    gone = record["keys"].pop(2)  # from the middle: what follows lies elsewhere in the two tars
    record["offsets"].pop(2)
    for name in ("sizes", "checks"):
        record[name] = {suffix: [*numbers[:2], *numbers[3:]] for suffix, numbers in record[name].items()}
    record["failures"] = [{"key": gone, "id": gone, "stage": "render", "reason": "planted"}]
    path.write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING):
        samples = make(out)
    assert [record.getMessage() for record in caplog.records] == [
        f"{out}: 1 object left out: views failed or were skipped"
    ]
    assert samples.source.left_out == 1
    assert gone not in keys_of(samples, 0)
    expected, found = tensors_by_key(make(shards), 0), tensors_by_key(samples, 0)
    both = set(expected) & set(found) & set(record["keys"])
    assert len(both) >= 4
    for key in both:  # each object's own cloud and pictures
        assert all(torch.equal(a, b) for a, b in zip(expected[key], found[key], strict=True))


def test_batches_move_whole(shards) -> None:
    loader = Loader(UnlabelledSamples(open_source(str(shards), SETTINGS), SETTINGS, AugmentSettings(), FORM, 4, 0))
    batch = next(iter(loader))
    assert batch.weak_image.dtype == batch.strong_image.dtype == torch.uint8
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert moved.keys == batch.keys
    expected = (batch.weak_image[:, 0].double() / 255 - 0.48145466) / 0.26862954
    assert torch.allclose(moved.weak_image[:, 0].double(), expected, atol=1e-5)
    assert moved.strong_image.dtype == torch.float32
    assert moved.weak_points.shape == moved.strong_points.shape == (4, 128, 3)
    assert not torch.equal(moved.weak_points, moved.strong_points)
    again = batch.to(torch.device("cpu"))
    assert torch.equal(again.strong_points, moved.strong_points)


def test_supervised_batches_hold_one_view_and_the_label(shards) -> None:
    source = open_source(str(shards), SETTINGS)
    samples = SupervisedSamples(source, SETTINGS, LabelledAugmentSettings(), FORM, 4, 0)
    loader = Loader(samples)
    strong = 0
    for epoch in range(3):
        samples.set_epoch(epoch)
        plain = {}
        for batch in unlabelled_epoch(source, epoch):
            plain |= dict(zip(batch.keys, batch.weak_image, strict=True))
        for batch in loader:
            assert batch.images.shape == (4, 1, 3, 64, 64)
            assert batch.images.dtype == torch.uint8
            assert batch.points.shape == (4, 128, 3)
            assert batch.label.dtype == torch.int64
            for key, label, images in zip(batch.keys, batch.label, batch.images, strict=True):
                assert source.manifest.classes[label] == key.rpartition("_")[0]
                strong += not torch.equal(images[0], plain[key])
            radius = batch.to(torch.device("cpu")).points.norm(dim=2).amax(dim=1)
            assert ((radius > 0.95) & (radius < 1.1)).all()
            assert batch.to(torch.device("cpu")).images.dtype == torch.float32
    assert 30 < strong < 3 * 36 - 30  # half of them


def unlabelled_epoch(source, epoch: int) -> list[RawBatch]:
    samples = UnlabelledSamples(source, SETTINGS, AugmentSettings(), FORM, 4, 0)
    loader = Loader(samples)
    samples.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_object_without_a_label_is_named(shards, tmp_path, workers: int) -> None:
    """The label of one object is blanked; training without labels does not notice."""
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    settings = SETTINGS.model_copy(update={"workers": workers})
    tar = out / "shapes/train-00001.tar"
    record = json.loads(tar.with_suffix(".json").read_text())
    whole = tar.read_bytes()
    first, second = record["offsets"][1:3]
    planted = re.sub(
        rb'("dataset":)"parametric"(.*?"label":)\d+',
        lambda found: (found[1] + b'""' + found[2] + b"null").ljust(len(found[0])),
        whole[first:second],
    )
    assert len(planted) == second - first
    assert b'"label":null' in planted
    tar.write_bytes(whole[:first] + planted + whole[second:])
    tar.with_suffix(".json").write_text(json.dumps({**record, "checks": {}}))  # as of an older build
    source = open_source(str(out), settings)
    loader = Loader(SupervisedSamples(source, settings, LabelledAugmentSettings(), FORM, 1, 0))
    with pytest.raises(DamagedShard) as caught:
        list(loader)
    assert str(caught.value) == f"{tar}: {record['keys'][1]}: no label, which supervised training needs"
    loader = Loader(UnlabelledSamples(source, settings, AugmentSettings(), FORM, 1, 0))
    assert record["keys"][1] in [key for batch in loader for key in batch.keys]
