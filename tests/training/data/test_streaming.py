"""Training from an object store: a real S3 server, a cache on a local disk, a store that fails, damaged shards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import REPOSITORY, Commands, torchrun
from object_store import BUCKET, FailingProxy, HangingForwarder, ObjectStore, reached

from manifests import remote, store
from manifests.errors import Refused
from manifests.patience import PATIENCE
from manifests.read_ahead import AheadFile, blocks_of
from training.data.dataset import open_source
from training.data.labels import labelled
from training.data.loader import Form, Loader, UnlabelledSamples
from training.data.sample_index import DamagedShard
from training.data.shard_cache import FOLDER, Cache, open_cache
from training.data.shard_reader import read_joined
from training.settings.data import AugmentSettings, DataSettings

FORM = Form(image_size=64, patch=8, mask_cell=16, mask_ratio=0.3)
SETTINGS = DataSettings(views="rgb12", num_points=128, shuffle=16)
SMALL_FIT = ("data.num_points=64", "optimizer.batch_size=8", "points.depth=2", "tensorboard=false")


@pytest.fixture(scope="module")
def server():
    found = ObjectStore()
    yield found
    found.close()


@pytest.fixture(scope="module")
def url(server, shards) -> str:
    """The shards in the object store."""
    return server.put_folder(shards, "shards")


@pytest.fixture
def proxy(server):
    found = FailingProxy(server.port)
    yield found
    found.close()


def loader_of(shards: object, batch_size: int = 4, **changes: object) -> Loader:
    settings = SETTINGS.model_copy(update=changes)
    source = open_source(str(shards), settings)
    return Loader(UnlabelledSamples(source, settings, AugmentSettings(), FORM, batch_size, 0))


def epoch_of(loader: Loader) -> list:
    return list(loader)


def same(batches: list, others: list) -> bool:
    assert [batch.keys for batch in batches] == [batch.keys for batch in others]
    pairs = [(vars(a)[n], vars(b)[n]) for a, b in zip(batches, others, strict=True) for n in vars(a)]
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor))


@pytest.mark.parametrize("workers", [0, 2, 7])
def test_batches_from_a_store_are_those_of_local_shards(server, shards, url, workers: int) -> None:
    """Also with more reader processes than shards, and the same again from the cache."""
    local = epoch_of(loader_of(shards, workers=workers))
    with reached(server.environment):
        assert same(epoch_of(loader_of(url, workers=workers)), local)


def test_evaluation_takes_every_sample_once_from_a_store(server, shards, url) -> None:
    settings = SETTINGS.model_copy(update={"split": "test"})
    expected = {key for shard in open_source(str(shards), settings).shards for key in shard.keys}
    with reached(server.environment):
        source = open_source(url, settings)
        numbers = range(-(-source.total // 8))
        for world in (1, 3):
            keys = [
                key
                for rank in range(world)
                for part in labelled(source, settings, 64, numbers[rank::world], 8)
                for key in part.keys
            ]
            assert sorted(keys) == sorted(expected)


def test_few_large_requests(server, url, proxy) -> None:
    """An epoch of 6 small shards: a request for each of its tars, or two where its head comes last."""
    with reached(proxy.environment):
        loader = loader_of(url)
        proxy.seen.clear()
        epoch_of(loader)
    gets = [path for method, path, _ in proxy.seen if method == "GET" and path.endswith(".tar")]
    assert len(set(gets)) == 12
    assert len(gets) <= 14
    assert len(proxy.seen) == len(gets)


def test_requests_are_merged_cut_and_asked_for_ahead(tmp_path) -> None:
    mb = 1 << 20
    assert blocks_of([(0, 5), (5, 9), (9 + 2 * mb, 10 + 2 * mb)]) == [(0, 10 + 2 * mb)]
    assert blocks_of([(3, 4), (5 * mb, 40 * mb)]) == [(3, 4), (5 * mb, 21 * mb), (21 * mb, 37 * mb), (37 * mb, 40 * mb)]
    assert blocks_of([]) == blocks_of([(7, 7)]) == []
    path, data = "memory://ahead/file", os.urandom(3000)
    fs, inner = remote.filesystem(path)
    fs.pipe_file(inner, data)
    with AheadFile(path, [(100, 200), (900, 1000)], len(data)) as file:
        file.seek(150)
        assert file.read(10) == data[150:160]
        assert file.read(800) == data[160:960]
        file.seek(2500)  # in no extent
        assert file.read(1000) == data[2500:]
        assert file.read(10) == b""
        file.seek(0)
        assert file.read() == data
    with store.open_reading(path) as file:
        assert file.read() == data
    with pytest.raises(FileNotFoundError):
        store.open_reading("memory://ahead/none")


# --- the cache


def cached_tar(server, url: str) -> tuple[str, str, int]:
    """(URL, sha256, bytes) of a tar."""
    data = server.get("shards/views/rgb12/train-00000.tar")
    return f"{url}/views/rgb12/train-00000.tar", hashlib.sha256(data).hexdigest(), len(data)


def test_a_cached_epoch_reads_the_store_once(server, shards, url, proxy, tmp_path) -> None:
    cache = {"cache": str(tmp_path / "cache")}
    local = epoch_of(loader_of(shards, workers=2))
    with reached(proxy.environment):
        assert same(epoch_of(loader_of(url, workers=2, **cache)), local)
        gets = [path for method, path, _ in proxy.seen if path.endswith(".tar") and method == "GET"]
        assert len(gets) == len(set(gets)) == 12  # two readers that share a shard fetch it once
        loader = loader_of(url, workers=2, **cache)
        proxy.answer = lambda path: 503 if path.endswith(".tar") else None
        proxy.seen.clear()
        assert same(epoch_of(loader), local)
        assert not proxy.seen
    names = sorted(path.name for path in (tmp_path / "cache" / FOLDER).glob("*.tar"))
    records = [json.loads(path.read_text()) for path in shards.glob("**/rgb12/train-*.json")]
    assert {f"{record['sha256']}.tar" for record in records} <= set(names)
    assert not list((tmp_path / "cache" / FOLDER).glob("*.tmp"))


@pytest.mark.parametrize("older", [False, True])
def test_a_damaged_file_of_the_cache_is_fetched_again(server, shards, url, tmp_path, older: bool) -> None:
    """One byte of it is flipped, or it is cut: what is trained on is what the store holds."""
    settings = SETTINGS.model_copy(update={"cache": str(tmp_path / "cache")})
    local = [list(read_joined(shard, range(len(shard.keys)))) for shard in open_source(str(shards), SETTINGS).shards]
    with reached(server.environment):
        for damage in ("flipped", "cut", "none"):
            for shard, expected in zip(open_source(url, settings).shards, local, strict=True):
                if older:
                    places = [replace(p, checks=None) for p in (shard.shapes_places, shard.views_places)]
                    shard = replace(shard, shapes_places=places[0], views_places=places[1])
                assert list(read_joined(shard, range(len(shard.keys)))) == expected
            files = list((tmp_path / "cache" / FOLDER).glob("*.tar"))
            assert len(files) == 12
            for path in files:
                data = bytearray(path.read_bytes())
                if damage == "flipped":
                    data[5000] ^= 1
                path.write_bytes(data[:-600] if damage == "cut" else data)


FETCH = """
import sys
from pathlib import Path
from training.data.shard_cache import Cache
Cache(Path(sys.argv[1]), 10**9).open(sys.argv[2], sys.argv[3], int(sys.argv[4])).close()
print("done")
"""


def fetching(proxy, folder: Path, tar: tuple[str, str, int]) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", FETCH, str(folder), *map(str, tar)]
    environment = {**os.environ, **proxy.environment, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_several_processes_fetch_a_tar_once(server, url, proxy, tmp_path) -> None:
    proxy.answer = lambda path: 1.0
    processes = [fetching(proxy, tmp_path, cached_tar(server, url)) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["done\n"] * 3
    assert len([1 for method, _, _ in proxy.seen if method == "GET"]) == 1


def test_a_killed_download_leaves_nothing_valid(server, url, proxy, tmp_path) -> None:
    """Another process waits for it meanwhile, fetches the tar itself and takes the leftover away."""
    tar, slow = cached_tar(server, url), [600.0]
    proxy.answer = lambda path: slow.pop() if slow else None
    killed = fetching(proxy, tmp_path, tar)
    deadline = time.monotonic() + 60
    while not (proxy.seen and list(tmp_path.glob("*.tmp"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    waiting = fetching(proxy, tmp_path, tar)
    time.sleep(1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob("*.tar"))
    assert waiting.communicate(timeout=60)[0] == "done\n"
    assert [path.name for path in tmp_path.glob("*.t*")] == [f"{tar[1]}.tar"]


def test_the_least_recently_used_goes_first(tmp_path) -> None:
    fs, _ = remote.filesystem("memory://lru/x")
    tars = {}
    for name in "abcd":
        data = os.urandom(1000)
        fs.pipe_file(f"/lru/{name}", data)
        tars[name] = (f"memory://lru/{name}", hashlib.sha256(data).hexdigest(), 1000)
    cache = Cache(tmp_path, 3000)

    def held() -> str:
        return "".join(name for name, (_, sha256, _) in tars.items() if (tmp_path / f"{sha256}.tar").exists())

    for name, expected in (("a", "a"), ("b", "ab"), ("c", "abc"), ("a", "abc"), ("d", "acd"), ("b", "abd")):
        with cache.open(*tars[name]) as file:
            assert len(file.read()) == 1000
        assert held() == expected
        time.sleep(0.01)
    with cache.open(*tars["a"]) as file:  # deleted while it is read: its reader goes on
        time.sleep(0.01)
        for name in ("b", "c", "d"):
            cache.open(*tars[name]).close()
            time.sleep(0.01)
        assert held() == "bcd"
        assert hashlib.sha256(file.read()).hexdigest() == tars["a"][1]
    with pytest.raises(ValueError, match="sha256 is not that of its record"):
        cache.open(tars["a"][0], tars["b"][1][::-1], 1000)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_cache_that_cannot_be_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"data\.cache=.*file/here: Not a directory"):
        open_cache(f"{tmp_path}/file/here", 1, 10)
    with pytest.raises(Refused, match=r"data\.cache_gb=1: a tar of 2 GB has no room in it"):
        open_cache(str(tmp_path), 1, 2 * 10**9)
    with pytest.raises(Refused, match="a cache is a local folder"):
        open_cache("s3://bucket/cache", 1, 10)


# --- a store that fails


@pytest.mark.parametrize("answer", [500, 503, "cut", 1.0])
def test_a_store_that_fails_for_a_while_is_asked_again(shards, url, proxy, answer) -> None:
    """Every other request for a tar fails, or takes long; the epoch is the same."""
    local = epoch_of(loader_of(shards))
    requests = iter(range(10**6))
    with reached(proxy.environment):
        loader = loader_of(url)
        proxy.answer = lambda path: answer if next(requests) % 2 == 0 else None
        assert same(epoch_of(loader), local)


def fit(url: str, run: Path, *changes: str) -> list[str]:
    options = ("--shards", url, "--run", str(run), *SMALL_FIT, *changes)
    return ["-m", "--", "training", "fit", "small_cross_most", *options]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_goes_on_failing_stops_all_ranks_naming_the_url(url, proxy, tmp_path, workers: int) -> None:
    """Two gloo processes; after the records, the tars of one shard are refused for good."""
    broken = "shards/views/rgb12/train-00002.tar"
    proxy.answer = lambda path: 503 if path.split("?")[0].endswith(broken) else None
    environment = {**os.environ, **proxy.environment, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment[PATIENCE] = "2"
    command = torchrun(2, *fit(url, tmp_path / "run", "optimizer.steps=40", f"data.workers={workers}"))
    found = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    codes = [line.split()[2] for line in found.stderr.splitlines() if line.strip().startswith("exitcode")]
    assert codes == ["3", "3"]
    told = [line for line in found.stderr.splitlines() if f"cannot read s3://{BUCKET}/{broken}: " in line]
    assert len(told) == 1
    assert found.stderr.count("Traceback") == 1  # torchrun's own
    assert proxy.environment["AWS_SECRET_ACCESS_KEY"] not in found.stderr + found.stdout


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_store_that_hangs_stops_fit_within_the_limit(server, url, tmp_path, workers: int) -> None:
    """It answers until the run has begun, then accepts and says nothing; read here, and by a reader process."""
    forwarder, run = HangingForwarder(server.port), tmp_path / "run"
    environment = {**os.environ, **forwarder.environment, "PYTHONPATH": str(REPOSITORY), PATIENCE: "3"}
    command = [sys.executable, *fit(url, run, "optimizer.steps=100000", f"data.workers={workers}")]
    command.remove("--")
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints/step-00000000").is_dir() and time.monotonic() < deadline:
            time.sleep(0.1)
        forwarder.left = 0
        begun = time.monotonic()
        _, message = process.communicate(timeout=100)
        assert time.monotonic() - begun < 30
        assert process.returncode == 3
        assert re.search(rf"cannot read {url}/\S+\.tar: no answer for 3 s \({PATIENCE}\)", message)
        assert "Traceback" not in message
    finally:
        process.kill()
        forwarder.close()


# --- damage


def copied(shards: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    return out


def test_every_flipped_byte_of_what_is_read_is_found(shards, tmp_path) -> None:
    """Also inside a picture that decodes all the same, and inside the numbers of a cloud."""
    out = copied(shards, tmp_path)
    shard = open_source(str(out), SETTINGS).shards[1]
    for tar, places in ((shard.shapes, shard.shapes_places), (shard.views, shard.views_places)):
        whole = Path(tar).read_bytes()
        members = list(places._members(3))
        at = int(places.offsets[3])
        for suffix, size, _ in members:
            for inside in (512, 512 + size // 2, 511 + size):
                damaged = bytearray(whole)
                damaged[at + inside] ^= 1
                Path(tar).write_bytes(damaged)
                with pytest.raises(DamagedShard, match=f"{Path(tar).name}: {shard.keys[3]}: {suffix} is not what"):
                    list(read_joined(shard, [3]))
            at += 512 + size + -size % 512
        Path(tar).write_bytes(whole)
    assert len(list(read_joined(shard, [3]))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_in_a_store_is_found(server, shards, workers: int) -> None:
    """A flipped byte, a tar cut in the middle and at a sample's end, and one that is gone."""
    tar = "train-00001.tar"
    name = f"damaged{workers}"
    url = server.put_folder(shards, name)
    place = f"{name}/views/rgb12/{tar}"
    record, whole = json.loads((shards / f"views/rgb12/{tar[:-4]}.json").read_text()), server.get(place)
    flipped = bytearray(whole)
    flipped[record["offsets"][2] + 1500] ^= 4
    keys = record["keys"]
    with reached(server.environment):
        for data, key in (
            (bytes(flipped), keys[2]),
            (whole[: record["offsets"][-1]], keys[-1]),
            (whole[:700], keys[0]),
        ):
            server.put(place, data)
            with pytest.raises(DamagedShard) as caught:
                epoch_of(loader_of(url, batch_size=1, workers=workers))
            assert str(caught.value).startswith(f"{url}/views/rgb12/{tar}: {key}: ")
            assert "\n" not in str(caught.value)
        loader = loader_of(url, batch_size=1, workers=workers)
        server._request("DELETE", place)
        with pytest.raises(DamagedShard, match=tar):
            epoch_of(loader)


def swap(out: Path, *suffixes: str) -> None:
    for suffix in suffixes:
        a, b = (out / f"views/rgb12/train-0000{number}{suffix}" for number in (3, 4))
        a.rename(out / "aside")
        b.rename(a)
        (out / "aside").rename(b)


def test_swapped_views_are_found(shards, tmp_path) -> None:
    """With their records before any training; alone where they are read; and views of another set or build."""
    out = copied(shards, tmp_path)
    swap(out, ".tar", ".json")
    with pytest.raises(Refused, match=r"train-00003\.tar does not fit .*draw this view set again"):
        open_source(str(out), SETTINGS)
    swap(out, ".json")
    with pytest.raises(DamagedShard, match=r"train-0000[34]\.tar: .*(where its record says|damaged tar)"):
        epoch_of(loader_of(out, batch_size=1))
    swap(out, ".tar")
    assert epoch_of(loader_of(out))
    other = next(path for path in (out / "views").iterdir() if path.name.startswith("depth10"))
    for suffix in (".tar", ".json"):  # the same keys, drawn otherwise
        shutil.copy(other / f"train-00003{suffix}", out / f"views/rgb12/train-00003{suffix}")
    with pytest.raises(Refused, match=r"train-00003\.tar was made with other settings .*of another build"):
        open_source(str(out), SETTINGS)


def test_pictures_of_another_object_under_its_name_are_found(shards, tmp_path) -> None:
    """Within a tar the bytes of two pictures of one size are exchanged, names and sizes left as they are."""
    out = copied(shards, tmp_path)
    shard = open_source(str(out), SETTINGS).shards[0]
    places, whole = shard.views_places, bytearray(Path(shard.views).read_bytes())
    starts = []
    for number in (0, 1):
        at = int(places.offsets[number])
        for suffix, size, _ in places._members(number):
            if suffix == "v00.rgb.jpg":
                starts.append((at + 512, size))
            at += 512 + size + -size % 512
    (a, size), (b, other) = starts
    count = min(size, other)
    whole[a : a + count], whole[b : b + count] = whole[b : b + count], whole[a : a + count]
    Path(shard.views).write_bytes(whole)
    with pytest.raises(DamagedShard, match=r"v00\.rgb\.jpg is not what was written"):
        list(read_joined(shard, [0]))


# --- paths


@pytest.mark.parametrize("path", ["pipe:cat /etc/passwd", " PIPE:ls", "simplecache::s3://bucket/x", "pipe://cat x"])
def test_no_path_is_a_command_or_a_chain(path: str, tmp_path) -> None:
    with pytest.raises(Refused, match="no commands, no chains"):
        store.absolute(path)
    pipeline, training = Commands(REPOSITORY), Commands(REPOSITORY, "training")
    if path.startswith("pipe:cat"):
        assert "no commands" in training("fit", "small_cross_most", "--shards", path, "--run", tmp_path, code=2).stderr
        assert "no commands" in pipeline("build", "parametric", "--out", path, "--workers", 0, code=2).stderr


@pytest.mark.parametrize("path", ["s3://AKIAKEY:hush@bucket/x", "s3://hush@bucket/x", "gs://bucket/x?token=hush"])
def test_keys_in_a_path_are_refused_and_not_repeated(path: str, tmp_path) -> None:
    with pytest.raises(Refused, match="no keys in a path") as caught:
        store.absolute(path)
    assert "hush" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)
    if "AKIAKEY" in path:
        said = Commands(REPOSITORY, "training")("fit", "small_cross_most", "--shards", path, "--run", tmp_path, code=2)
        assert said.stderr.strip() == str(caught.value)


def test_a_missing_library_is_one_line_with_what_to_type(tmp_path) -> None:
    blocker = tmp_path / "blocked"
    for name in ("s3fs", "gcsfs"):
        blocker.joinpath(name).mkdir(parents=True)
        words = f"raise ModuleNotFoundError('No module named {name}', name='{name}')"
        blocker.joinpath(name, "__init__.py").write_text(words)
    environment = {**os.environ, "PYTHONPATH": f"{blocker}:{REPOSITORY}"}
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        path = f"{scheme}://bucket/x"
        command = [sys.executable, "-m", "pipeline", "check", path]
        said = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert said.returncode == 2
        (line,) = said.stderr.strip().splitlines()
        assert line == f"cannot open {path}/manifest.json: its file system is missing: pip install {package}"


# --- all of it


@pytest.mark.slow
def test_build_check_views_fit_evaluate_in_an_object_store(server, tmp_path) -> None:
    out, run = f"s3://{BUCKET}/whole", tmp_path / "run"
    pipeline, training = Commands(REPOSITORY), Commands(REPOSITORY, "training")
    pipeline.environment |= server.environment
    training.environment |= server.environment
    small = ("num_points=256", "fps_prefix=64", "views.rgb12.image_size=64", "views.depth10.image_size=64")
    objects = ("parametric.objects=40", "parametric.test_fraction=0.5", "shard_size=6")
    pipeline("build", "parametric", "--out", out, "--workers", 2, *objects, *small)
    pipeline("views", "depth10", "--shards", out, "--workers", 0, "image_size=64", "name=again")
    assert json.loads(pipeline("check", out, "--json").stdout)["ok"]
    changes = (*SMALL_FIT, "optimizer.steps=4", "data.workers=1", f"data.cache={tmp_path / 'cache'}")
    training("fit", "small_cross_most", "--shards", out, "--run", run, *changes)
    training("fit", "small_cross_most", "--shards", out, "--run", run, *changes[:-1])  # goes on without the cache
    found = json.loads(training("evaluate", run, "--shards", out, "--json").stdout)
    test = len([key for shard in open_source_there(server, out) for key in shard.keys])
    assert found["n"] == test
    assert training("embed", run, "--shards", out, "--out", tmp_path / "x.npz").returncode == 0
    assert len(json.loads(training("predict", run, "--shards", out, "--json").stdout)) == test
    texts = b"".join(path.read_bytes() for path in run.rglob("*") if path.suffix in (".toml", ".json", ".csv"))
    assert server.environment["AWS_SECRET_ACCESS_KEY"].encode() not in texts
    assert list((tmp_path / "cache" / FOLDER).glob("*.tar"))


def open_source_there(server, out: str) -> tuple:
    with reached(server.environment):
        return open_source(
            out, SETTINGS.model_copy(update={"split": "test", "views": "again", "channel": "depth"})
        ).shards
