"""The three stages of PointCMT as short runs of small networks."""

from __future__ import annotations

from pathlib import Path

from training_runs import typed

SHORT = ("optimizer.batch_size=8", "optimizer.steps=2", "log_every=2", "tensorboard=false", "data.num_points=64")
VIEWS = ("data.views=rgb12", "data.workers=0", "image.image_size=32")
STUDENT = ("points.backbone=pointnet", "points.widths=[16, 16, 16, 32]", "points.emb_dims=64")


def stages_in(folder: Path, shards: Path) -> dict[str, Path]:
    """A run of each stage by its method, each of those before it."""
    runs = {name: folder / name for name in ("multiview", "cross_modal_generator", "pointcmt")}
    for method, run in runs.items():
        typed("fit", method, "--shards", shards, "--run", run, *VIEWS, *SHORT, *begun(method, runs))
    return runs


def begun(method: str, runs: dict[str, Path]) -> tuple[str, ...]:
    """The keys with which a stage begins after the runs before it."""
    teacher, generator = f"init.teacher={runs['multiview']}", f"init.generator={runs['cross_modal_generator']}"
    return {"multiview": (), "cross_modal_generator": (teacher,)}.get(method, (teacher, generator, *STUDENT))
