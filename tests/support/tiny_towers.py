"""`python -m training` where `cross_most_small` is the smallest CLIP there is: its checkpoints take a few kilobytes.

python tests/support/tiny_towers.py fit small_cross_most ...
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.__main__ import main
from training.models import clip

SIZES = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
}


def config_in(folder: Path) -> Path:
    """Writes the tiny sizes under the name that open_clip then knows them by."""
    path = folder / clip.SMALL_CONFIG.name
    path.write_text(json.dumps(SIZES))
    return path


@contextmanager
def tiny() -> Iterator[None]:
    """Makes `cross_most_small` tiny inside the block."""
    known = clip.SMALL_CONFIG
    with tempfile.TemporaryDirectory() as folder:
        clip.SMALL_CONFIG = config_in(Path(folder))
        try:
            yield
        finally:
            clip.SMALL_CONFIG = known


def run(arguments: list[str]) -> int:
    """Runs one command with the tiny towers."""
    with tiny():
        return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
