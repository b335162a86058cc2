"""Requests to an object store, a shard: what a build, a rerun, `check` and the start of training ask for.

    python tests/bench/bench_requests.py

Two small builds of parametric objects (meshes and two view sets: four tars a shard) against a real S3 server on this
machine, through a proxy that counts. The difference of the two is what four more shards cost; a tar larger than a block
of 32 MB costs more (an upload in parts, a read in blocks).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(REPOSITORY / "tests/support"))

from builders import SMALL  # noqa: E402
from object_store import FailingProxy, ObjectStore  # noqa: E402

JOIN = """import sys
from training.data.dataset import open_source
from training.settings.data import DataSettings
open_source(sys.argv[1], DataSettings(views='rgb12'))"""
SHARDS = (4, 8)


def asked(proxy: FailingProxy, *command: str) -> Counter[str]:
    """Requests of one command by kind."""
    proxy.seen.clear()
    environment = {**os.environ, **proxy.environment, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return Counter("LIST" if "list-type" in path else method for method, path, _ in proxy.seen)


def main() -> None:
    """Prints requests a shard and what comes once."""
    server = ObjectStore()
    proxy = FailingProxy(server.port)
    counts: dict[str, list[Counter[str]]] = {}
    try:
        for shards in SHARDS:
            out = f"s3://bucket/{shards}"
            build = ["-m", "pipeline", "build", "parametric", "--out", out, "--workers", "0", "shard_size=4", *SMALL]
            build += ["parametric.test_fraction=0", f"parametric.objects={4 * shards}"]
            commands = {
                "build": build,
                "build again": build,
                "check": ["-m", "pipeline", "check", out],
                "start of training": ["-c", JOIN, out],
            }
            for name, command in commands.items():
                counts.setdefault(name, []).append(asked(proxy, *command))
    finally:
        proxy.close()
        server.close()
    few, many = SHARDS
    for name, (fewer, more) in counts.items():
        kinds = {kind: (more[kind] - fewer[kind]) / (many - few) for kind in sorted(more)}
        each = ", ".join(f"{n:g} {kind}" for kind, n in kinds.items() if n)
        total = sum(kinds.values())
        print(f"{name}: {total:g} requests a shard ({each}), and {more.total() - many * total:g} in all")


if __name__ == "__main__":
    main()
