"""Training's reader on shards in an S3 server against the same shards on the local disk.

    python tests/bench/bench_stream.py

Builds parametric objects first (12 RGB pictures of 224 pixels, 8,192 points), copies them into a moto server, and takes
epochs in turns by the loader that training uses (reading, decoding, augmenting pictures): local, streamed, and by a
cache that the first epoch fills; with 1 and 2 reader processes. Says samples/s and the share of the local rate, the
best of the turns. The server is one Python process on the same cores and sends no more than some 300 MB/s: the share is
a floor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import torch
from machine import describe_machine
from object_store import ObjectStore, reached

from training.data.dataset import open_source
from training.data.loader import Form, Loader, UnlabelledSamples
from training.settings.data import AugmentSettings, DataSettings

REPOSITORY = Path(__file__).resolve().parent.parent.parent
OBJECTS, SHARD, BATCH, TURNS = 512, 128, 32, 3
PICTURES = ("views.rgb12.image_size=224", 'views.rgb12.channels=["rgb"]', "views.rgb12.name=rgb12")


def build(out: Path) -> None:
    """Shards of parametric objects with 12 RGB pictures."""
    changes = (f"parametric.objects={OBJECTS}", "parametric.test_fraction=0", f"shard_size={SHARD}", *PICTURES)
    command = [sys.executable, "-m", "pipeline", "build", "parametric", "--out", str(out), "--workers", "2"]
    subprocess.run([*command, "num_points=8192", *changes], cwd=REPOSITORY, check=True, capture_output=True)


def epochs(shards: str, workers: int, cache: str = "") -> list[float]:
    """Samples/s of successive epochs, from the first batch asked for to the last; readers stay over their ends."""
    settings = DataSettings(num_points=8192, workers=workers, shuffle=64, cache=cache)
    samples = UnlabelledSamples(
        open_source(shards, settings), settings, AugmentSettings(), Form(224, 16, 32, 0.3), BATCH, 0
    )
    loader, rates = Loader(samples), []
    for epoch in range(TURNS):
        samples.set_epoch(epoch)
        start = time.perf_counter()
        count = sum(len(batch.keys) for batch in loader)
        rates.append(count / (time.perf_counter() - start))
    return rates


def main() -> None:
    """Prints a line for each number of reader processes."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    server = ObjectStore()
    try:
        with tempfile.TemporaryDirectory() as folder, reached(server.environment):
            out = Path(folder) / "shards"
            build(out)
            size = sum(path.stat().st_size for path in out.rglob("*.tar") if "meshes" not in path.parts)
            url = server.put_folder(out, "shards")
            print(f"{describe_machine()}; {OBJECTS} objects, {size / OBJECTS / 1000:.0f} kB each, {SHARD} a shard")
            for workers in (1, 2):
                best: dict[str, float] = {}
                for turn in range(TURNS):
                    cache = f"{folder}/cache-{workers}-{turn}"
                    for name, rates in (
                        ("local", epochs(str(out), workers)),
                        ("streamed", epochs(url, workers)),
                        ("cached", epochs(url, workers, cache)),
                    ):
                        for part, rate in ((f"{name}, first epoch", rates[0]), (name, max(rates[1:]))):
                            best[part] = max(best.get(part, 0), rate)
                print(f"{workers} reader processes, load {os.getloadavg()[0]:.1f}:")
                for name, rate in best.items():
                    local = best["local, first epoch" if name.endswith("first epoch") else "local"]
                    print(f"  {name}: {rate:.0f} samples/s, {100 * rate / local:.0f}% of local")
    finally:
        server.close()


if __name__ == "__main__":
    main()
