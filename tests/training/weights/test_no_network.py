"""Without a network a tag or hub name is one line in time, also where names or proxies hang; a cache is enough."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub.utils import close_session
from safetensors.torch import save_file
from tiny_towers import SIZES
from training_runs import ONE_STEP, typed

from training.models import clip
from training.settings.model import ImageSettings


@pytest.fixture(params=["refuses", "silent"])
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A proxy that refuses connections, or takes them and says nothing; and empty caches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listening.listen()
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listening.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        close_session()
        yield
    close_session()


@pytest.mark.parametrize("source", ["openai", "hf-hub:someone/clip"])
@pytest.mark.slow
def test_what_cannot_be_fetched_is_one_line_in_time(network, shards, tmp_path, source: str) -> None:
    begun = time.monotonic()
    changes = ("image.model=ViT-B-32-quickgelu", "points.depth=1", f"init.image={source}", "mask.image_cell=32")
    place = ("--shards", shards, "--run", tmp_path / "run")
    _, err = typed("fit", "small_cross_most", *ONE_STEP, *changes, *place, code=2)
    assert time.monotonic() - begun < 10
    assert err.startswith(f"init.image={source}: in no cache here, and huggingface.co cannot be reached")
    assert "init.image=FILE" in err
    assert len(err.splitlines()) == 1


def test_a_tag_in_the_cache_needs_no_network(network, monkeypatch, tmp_path) -> None:
    """The file is taken from the cache, whatever the network does."""
    monkeypatch.setattr(clip, "SMALL_CONFIG", tmp_path / clip.SMALL_CONFIG.name)
    clip.SMALL_CONFIG.write_text(json.dumps(SIZES))
    repository = tmp_path / "hub/models--someone--small"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    settings = ImageSettings(model=clip.SMALL_CONFIG.stem)
    tensors = {name: value.contiguous() for name, value in clip.create_clip(settings).state_dict().items()}
    save_file(tensors, snapshot / "open_clip_model.safetensors")
    about = {"hf_hub": "someone/small/", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: about if tag == "known" else {})
    got = clip.create_clip(settings.model_copy(update={"pretrained": "known"}))
    assert all(torch.equal(value, tensors[name]) for name, value in got.state_dict().items())
