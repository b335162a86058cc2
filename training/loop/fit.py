"""The training loop of every method: sets up a run or resumes it, updates batch by batch, logs and saves."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from manifests import plugins, store
from manifests.config import first_difference, load_toml, to_toml
from manifests.errors import Refused
from manifests.layout import library_versions
from manifests.presets import AnyViews
from manifests.process_info import peak_resident_mb
from manifests.records import json_text
from training import distributed
from training.data.dataset import Source, open_source
from training.data.depth_pairs import Live, PairSamples, depth_preset, live_of, opened_maps
from training.data.loader import EpochSamples, Form, Loader, SupervisedSamples, UnlabelledSamples, ViewsSamples
from training.data.part_of_split import part_of
from training.data.part_samples import PartSamples, part_table
from training.loop.labelled_few import refuse_unfit, tell_what_is_trained, write_objects
from training.loop.metric_log import HISTOGRAMS, LOG, Logged, WriteEvent, append_histograms, append_row, events
from training.loop.run_lock import held
from training.loop.shutdown import Interrupted, Pending, remembered
from training.loop.throughput import Pace
from training.loop.train_state import Run
from training.loop.update import updates_of
from training.loop.vain_training import ConfidentShares, warn_of_random_towers
from training.models.clip import pixel_statistics
from training.models.cross_modal import CrossModalModel
from training.models.image_backbone import ImageBackbone
from training.models.part_model import PartModel, TrainedModel
from training.networks.precision import require_precision
from training.objectives import is_supervised
from training.settings.checkpoint_recipe import POLICY_OF_DATA
from training.settings.clip2point_recipe import Clip2PointRecipe
from training.settings.data import DataSettings
from training.settings.fit_recipe import (
    CrossPointRecipe,
    FitRecipe,
    PartsRecipe,
    TaughtRecipe,
    as_begun,
    saved_recipe,
)
from training.weights.checkpoint import RECIPE, TEXT, build_model, step_folders, tensors_of, without_pretrained
from training.weights.part_weights import new_part_model
from training.weights.pointcmt_weights import require_stages
from training.weights.pretrained import Loaded
from training.weights.run_folder import CLASSES, read_about, with_its_plugins

POLICY = ("save_every", "keep_last", "tensorboard", "eval_every", "activation_checkpointing")
Judge = Callable[[int, dict[str, CrossModalModel]], dict[str, float]]  # of a step and its models
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "webdataset", "numpy", "pillow")


def fit(
    recipe: FitRecipe,
    shards: str,
    run: str,
    device: torch.device,
    on_log: Callable[[Logged], None] = lambda logged: None,
    on_step: Callable[[int, int], None] = lambda step, total: None,
    on_weights: Callable[[Loaded], None] = lambda loaded: None,
    judge: Judge | None = None,
) -> Path:
    """Trains to the last step, resuming from the last checkpoint of `run` if it has one. Returns the last one's folder.

    on_weights: called for each source of weights that a new run begins with. judge: measures student and teacher before
    step 1 and every `eval_every` steps, for the log alone: what it finds changes nothing. Under torchrun every process
    calls `fit`; process 0 writes and calls on_log and on_weights. Raises, in all processes, the error that one of them
    met: before anything is written, Refused when shards or recipe do not fit or another process trains into `run`;
    later, Stopped on a loss or weight that is not finite, a damaged shard (DamagedShard) or a full disk; Interrupted
    after a signal.
    """
    folder = store.local_path(run, "--run")
    sources: list[Loaded] = []
    torch.set_flush_denormal(True)
    with distributed.together():
        recipe = _as_begun(folder, recipe)
        state, text = _set_up(folder, recipe, shards, device, sources.append)
        folders = step_folders(folder)
    last = distributed.same(str(folders[-1]) if folders else "")
    begun = {} if judge is None or last else judge(0, _models(state))  # what it refuses is refused before writing
    with ExitStack() as stack:
        with distributed.together():
            if distributed.leads():
                stack.enter_context(held(folder))
                if last != "".join(map(str, step_folders(folder)[-1:])):
                    raise Refused(f"--run {folder} was trained meanwhile: the same command goes on from there")
                for place in (folder, folder / "text", folder / "checkpoints"):
                    store.delete_temporaries(str(place))
            if last:
                state.resume(Path(last))
            elif distributed.leads():
                _write_run_files(state, text, sources)
                warn_of_random_towers(recipe)
                tell_what_is_trained(state.updates.student, recipe)
                for source in sources:
                    on_weights(source)
        if not last:
            state.seed()
            state.save()
        started, first = time.monotonic(), state.step
        _loop(state, on_log, on_step, judge, begun)
        finished = state.save()
        if distributed.leads():
            write_seconds(folder, time.monotonic() - started, state.step - first)
    return finished


def prepare(recipe: FitRecipe, shards: str, run: str, device: torch.device) -> Run:
    """Sets up a run as `fit` does, without writing anything. Raises Refused as `fit` does."""
    folder = store.local_path(run, "--run")
    with distributed.together():
        recipe = _as_begun(folder, recipe)
        state, _ = _set_up(folder, recipe, shards, device)
    return state


def _as_begun(folder: Path, recipe: FitRecipe) -> FitRecipe:
    """The recipe of a new run as it is, that of a resumed one as the run was begun. Refuses another recipe."""
    known = folder / RECIPE
    if not known.is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise Refused(f"--run {folder} is not empty and no run (it has no {RECIPE})")
        return recipe
    about, saved = read_about(folder) if (folder / CLASSES).is_file() else {}, load_toml(known)
    for name, version in plugins.versions().items():
        if about.get("plugins", {}).get(name, version) != version:
            raise Refused(f"--run {folder} began with another version of plugin {name}: choose another --run")
    with with_its_plugins(about, f"--run {folder}"):
        begun = saved_recipe(saved, str(known))
    recipe = as_begun(recipe, saved, f"--run {folder}")
    change = first_difference(_decisive(begun), _decisive(recipe))
    if change:
        raise Refused(f"--run {folder} holds a run of another recipe: {change}; choose another --run")
    return recipe


def _decisive(recipe: FitRecipe) -> dict[str, Any]:
    """A recipe's values without those about the machine, which may change while a run is stopped."""
    values = recipe.model_dump(mode="json", exclude=set(POLICY))
    values["data"] = {name: value for name, value in values["data"].items() if name not in POLICY_OF_DATA}
    del values["optimizer"]["accumulate"]
    return values


def _refuse_other_shards(folder: Path, source: Source) -> None:
    """Refuses to resume with other shapes, views or classes; the shards may have moved."""
    if not step_folders(folder):
        return
    old = read_about(folder)
    for name, value in _identity(source).items():
        if old.get(name) != value:
            raise Refused(f"--run {folder} began with other shards (another {name}); choose another --run")


def _identity(source: Source) -> dict[str, Any]:
    """The values of run.json about the shards."""
    manifest = source.manifest
    return {
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "prompt_names": list(manifest.prompt_names),
        "assets_hash": manifest.assets_hash,
        "shapes_hash": manifest.shapes_hash,
        "view_set": source.view_set.name if source.view_set else "",
        "view_set_hash": source.view_set.hash if source.view_set else "",
    }


def _set_up(
    folder: Path,
    recipe: FitRecipe,
    shards: str,
    device: torch.device,
    on_weights: Callable[[Loaded], None] = lambda loaded: None,
) -> tuple[Run, nn.Module | None]:
    """Opens the shards first (cheap, and most mistakes are there), then builds the model and its text tower, if any."""
    own, readers = batch_of_process(recipe), distributed.readers_of_process(recipe.data.workers)
    require_precision(recipe.precision, device)
    if not step_folders(folder):
        require_stages(recipe)
    source = open_source(shards, recipe.data, tower=pixel_statistics(recipe), pictures=recipe.reads_pictures)
    if not source.manifest.classes:
        raise Refused(f"--shards {shards} has no class names: build it with classes=[...]")
    refuse_unfit(recipe, source, shards)
    _refuse_other_shards(folder, source)
    source = part_of(source, shards, recipe)
    built = without_pretrained(recipe) if step_folders(folder) else recipe
    student, text = _new_model(built, source, on_weights)
    form = Form(0, 0, 0, 0.0) if isinstance(student, PartModel) else _form_of(student.image, recipe)
    kind: type[EpochSamples] = SupervisedSamples if is_supervised(recipe.method) else UnlabelledSamples
    kind = ViewsSamples if recipe.every_view else kind
    kind = PartSamples if isinstance(student, PartModel) else kind
    place = distributed.rank(), distributed.world()
    pin = device.type == "cuda"
    settings = recipe.data.model_copy(update={"workers": readers})
    pairs = partial(PairSamples, *_depth_of(recipe, shards)) if isinstance(recipe, Clip2PointRecipe) else None
    samples = (pairs or kind)(source, settings, recipe.augment, form, own, recipe.seed, *place)
    if isinstance(samples, ViewsSamples) and isinstance(student, CrossModalModel) and student.adapter and not readers:
        samples.known = student.adapter.kept  # of objects whose features are kept no picture is read
    loader = Loader(samples, pin)
    student.to(device).train()
    updates = updates_of(student, recipe, samples.num_batches)
    return Run(folder, recipe, device, updates, samples, loader), text


def _depth_of(
    recipe: Clip2PointRecipe, shards: str
) -> tuple[AnyViews, Live | None, tuple[tuple[Source, DataSettings], ...]]:
    """The depth pictures that are judged; how maps are drawn, or where they are stored."""
    own, tower = recipe.clip2point, pixel_statistics(recipe)
    preset = depth_preset(store.absolute(shards), own.depth)
    if own.maps:
        return preset, None, opened_maps(shards, own.maps, recipe.data, tower)
    return preset, live_of(preset, own.depth, own.points, own.sampling == "random", tower), ()


def _new_model(
    recipe: FitRecipe, source: Source, on_weights: Callable[[Loaded], None]
) -> tuple[TrainedModel, nn.Module | None]:
    """The model of a new run, and the text tower that its classifier is made from."""
    if isinstance(recipe, PartsRecipe):
        return new_part_model(recipe, part_table(source.manifest.dataset).parts, on_weights), None
    return build_model(recipe, source.manifest.prompt_names, on_weights)


def _form_of(tower: ImageBackbone, recipe: FitRecipe) -> Form:
    """What readers must know of the model; without masks no cell is hidden. Raises Refused for another cell."""
    if tower.without_tokens or not isinstance(recipe, TaughtRecipe):
        views = recipe.crosspoint.images if isinstance(recipe, CrossPointRecipe) else 1
        return Form(tower.image_size, tower.patch, tower.patch, 0.0, views)
    cell = recipe.mask.image_cell
    if cell % tower.patch or tower.image_size % cell:
        cells = [tower.patch * n for n in range(1, tower.grid + 1) if tower.grid % n == 0]
        near = min(cells, key=lambda each: abs(each - cell))
        raise Refused(
            f"mask.image_cell={cell} must be whole patches of {tower.patch} and divide {tower.image_size}, such as "
            f"{near}"
        )
    return Form(tower.image_size, tower.patch, cell, recipe.mask.image_ratio)


def batch_of_process(recipe: FitRecipe) -> int:
    """How many samples of a batch each process takes. Raises Refused where they cannot share it evenly."""
    own, rest = divmod(recipe.optimizer.batch_size, distributed.world())
    if rest:
        raise Refused(
            f"optimizer.batch_size={recipe.optimizer.batch_size} is of all processes together: {distributed.world()} "
            "of them cannot share it evenly"
        )
    if own % recipe.optimizer.accumulate:
        raise Refused(
            f"optimizer.accumulate={recipe.optimizer.accumulate} cannot divide the {own} samples of a process "
            f"(optimizer.batch_size={recipe.optimizer.batch_size}) evenly"
        )
    return own


def _write_run_files(state: Run, text: nn.Module | None, sources: list[Loaded]) -> None:
    """Writes recipe.toml, run.json and the text tower, which prediction and evaluation need beside a checkpoint.

    Raises Refused where the run's folder cannot be written.
    """
    samples, manifest, view_set = state.samples, state.samples.source.manifest, state.samples.source.view_set
    about = _identity(samples.source) | {
        "objects": samples.source.total,
        "shapes": manifest.recipe,  # how `predict` must make the shapes and views of files
        "preset": view_set.preset.model_dump(mode="json") if view_set else {},
        "versions": library_versions(*LIBRARIES),
        "seconds": 0.0,
        "max_rss_mb": 0.0,
        "processes": distributed.world(),
        "pixel_mean": samples.mean,
        "pixel_deviation": samples.deviation,
        "weights": [source.summary() for source in sources],
    }
    if isinstance(samples, PairSamples):
        shown = {"view_set": state.recipe.judged_data.views, "preset": samples.depth.model_dump(mode="json")}
        about["judged"] = shown
    if isinstance(state.recipe, PartsRecipe):
        about["parts"] = list(part_table(manifest.dataset).parts)
    if plugins.loaded():
        about["plugins"] = plugins.versions()
    try:
        store.write_bytes(str(state.folder / RECIPE), to_toml(state.recipe.model_dump(mode="json")).encode())
        store.write_bytes(str(state.folder / CLASSES), json_text(about, indent=1).encode())
        write_objects(state.folder, state.recipe, samples.source)
        if text is not None and state.updates.student.text is None:  # else it is trained, and part of every checkpoint
            store.write_bytes(str(state.folder / TEXT), save(tensors_of(text)))
    except OSError as error:
        raise Refused(f"--run {state.folder} cannot be written: {error.strerror or error}") from error


def write_seconds(folder: Path, seconds: float, steps: int) -> None:
    """Adds the cost of a run to run.json: seconds, largest resident memory, processes, milliseconds a step."""
    about = read_about(folder)
    about["seconds"] = round(about["seconds"] + seconds, 3)
    about["max_rss_mb"] = round(peak_resident_mb(), 1)
    about["processes"] = distributed.world()
    if steps:
        about["ms_per_step"] = round(1000 * seconds / steps, 1)
    store.write_bytes(str(folder / CLASSES), json_text(about, indent=1).encode())


def _models(state: Run) -> dict[str, CrossModalModel]:
    student, teacher = state.updates.student, state.updates.teacher
    if isinstance(student, PartModel):
        return {}  # no recipe of it has eval_every
    return {"student": student} | ({} if teacher is None else {"teacher": teacher.model})


def _loop(
    state: Run,
    on_log: Callable[[Logged], None],
    on_step: Callable[[int, int], None],
    judge: Judge | None = None,
    begun: dict[str, float] | None = None,
) -> None:
    """begun: what the judge found before the first step."""
    recipe, updates, total = state.recipe, state.updates, state.updates.total_steps
    pace, since = Pace(recipe.optimizer.batch_size, state.device), state.step
    shares = ConfidentShares(recipe, state.samples.num_batches, told=state.step >= state.samples.num_batches)
    wanted = recipe.tensorboard and distributed.leads()
    with remembered(signal.SIGTERM, signal.SIGINT) as pending, events(state.folder, wanted, state.step) as write_event:
        if begun and distributed.leads():
            _write_row(state, begun, write_event)
        while state.step < total:
            state.samples.set_epoch(*state.progress())
            for batch in _agreed(state, pace, pending):
                rate = state.update(batch)
                on_step(state.step, total)
                if state.step % recipe.log_every == 0 or state.step == total:
                    updates.refuse_fault()
                    values = updates.log.row() | {"lr": rate} | pace.row(state.step - since)
                    since = state.step
                    if judge is not None and (state.step % recipe.eval_every == 0 or state.step == total):
                        values |= judge(state.step, _models(state))
                        pace.restart()
                    with distributed.together():
                        if distributed.leads():
                            _tell(state, values, write_event, on_log)
                            shares.see(state.step, values)
                if state.step % recipe.save_every == 0 and state.step < total:
                    state.save()
                if state.step >= total:
                    return


def _agreed(state: Run, pace: Pace, pending: Pending) -> Iterator[Any]:
    """The remaining batches of an epoch. All processes get a batch, or all stop for the same reason.

    A signal takes effect here, between two steps: a checkpoint is written, then Interrupted is raised.
    """
    batches = iter(state.loader)
    while True:
        batch, error = None, None
        with pace.waiting():
            try:
                batch = next(batches, None)
            except Exception as raised:
                error = raised
        number = distributed.agree(
            None if pending.number else error, pending.number
        )  # the signal may also have ended readers
        if number:
            state.save()
            raise Interrupted(number)
        if batch is None:
            return
        yield batch


def _tell(state: Run, values: dict[str, float], write_event: WriteEvent, on_log: Callable[[Logged], None]) -> None:
    """Writes one row to log.csv and TensorBoard, and calls on_log."""
    _write_row(state, values, write_event)
    histograms, classes = state.updates.log.histograms, state.samples.source.manifest.classes
    append_histograms(state.folder / HISTOGRAMS, state.step, histograms, classes)
    on_log(Logged(state.step, state.updates.total_steps, values))


def _write_row(state: Run, values: dict[str, float], write_event: WriteEvent) -> None:
    append_row(state.folder / LOG, state.step, values)
    for name, value in values.items():
        write_event(name, value, state.step)
