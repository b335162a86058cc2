"""Arguments of every command of `python -m training`."""

from __future__ import annotations

import argparse

from manifests.cli import ShowVersion, add_plugin, with_examples

A_RUN = "a run (its last step) or one of its checkpoints/step-* folders"

_EXAMPLES = {
    "fit": (
        "fit small_cross_most --shards shards/target --run runs/cross_most init.all=runs/pretrain",
        "fit modelnet40 --shards shards/modelnet40 --run runs/mn40 init.points=runs/pretrain --dry-run",
    ),
    "evaluate": (
        "evaluate runs/mn40 --shards shards/modelnet40",
        "evaluate openai --shards shards/modelnet40 data.views=rgb12 prompts=ulip64",
    ),
    "embed": ("embed runs/mn40 --shards shards/modelnet40 --out mn40.npz --picture tsne",),
    "predict": (
        "predict runs/mn40 chair.obj scan.ply --classes chair,table,lamp",
        "predict runs/mn40 my_meshes --axes y,z,x --html page.html",
        "predict runs/mn40 --shards shards/mine --split all --json",
    ),
    "probe": (
        "probe runs/pretrain --shards shards/modelnet40 --C search",
        "probe runs/pretrain --shards shards/modelnet40 --ways 5 --shots 10",
        "probe openai --shards shards/modelnet40 --features image data.views=rgb12",
        "probe runs/pretrain --shards shards/modelnet40 --retrieval --plot modelnet40.png",
    ),
    "report": ("report runs/self_training runs/cross_most --shards shards/target --source shards/source",),
    "table": (
        "table 1 --shards shards --run runs/tables init.points=runs/pretrain --dry-run",
        "table 3 --shards shards --run runs/tables --rows 'joint*' --seeds 0,1,2",
    ),
    "weights": ("weights Point-BERT.pth", "weights runs/mn40 --out mn40.safetensors", "weights --where"),
    "recipes": ("recipes", "recipes small_cross_most"),
}


def parser(prog: str) -> argparse.ArgumentParser:
    """All commands; `command` is the name of the chosen one. prog: the program's name in its help."""
    program = argparse.ArgumentParser(prog=prog, description="Shards into a label-free 3D classifier.")
    program.add_argument("--version", action=ShowVersion)
    commands = program.add_subparsers(dest="command", required=True)
    _fit(commands.add_parser("fit", help="train"))
    _evaluate(commands.add_parser("evaluate", help="accuracies of a checkpoint"))
    _embed(commands.add_parser("embed", help="features of a split as one .npz file, and a picture of them"))
    _predict(commands.add_parser("predict", help="labels of files, or of shards"))
    _probe(
        commands.add_parser("probe", help="how well frozen features tell classes apart: linear, few-shot, retrieval")
    )
    _report(commands.add_parser("report", help="compare runs: a table, curves and contact sheets"))
    _table(commands.add_parser("table", help="run a table of the paper and print it beside the paper's figures"))
    _weights(commands.add_parser("weights", help="what a weights file holds, and what of our towers it fills"))
    recipes = commands.add_parser("recipes", help="list the shipped recipes, or show one with all its keys")
    recipes.add_argument("name", nargs="?", help="a shipped recipe or a .toml file")
    for name, examples in _EXAMPLES.items():
        with_examples(commands.choices[name], *examples)
    return program


def _fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("recipe", help="name of a shipped recipe (`recipes` lists them) or a .toml file")
    fit.add_argument("changes", nargs="*", metavar="key=value", help="changed keys, such as optimizer.steps=100")
    fit.add_argument("--shards", required=True, help="a finished build")
    fit.add_argument("--run", required=True, help="folder of this run; a run that was stopped goes on")
    _add_preset(fit)
    _add_plugin(fit)
    _add_device(fit)
    fit.add_argument("--dry-run", action="store_true", help="steps, memory and time from one measured step; no writing")
    fit.add_argument("--json", action="store_true", help="with --dry-run: print it as one JSON object")
    fit.add_argument(
        "--looks-at-labels",
        action="store_true",
        help="with eval_every=STEPS: log accuracy on the labelled test split; such a run is no label-free result",
    )


def _evaluate(evaluate: argparse.ArgumentParser) -> None:
    keys = "prompts, classes, views_weight, keys of data; of weights without a run init.* (the other tower), "
    keys += "image.*, points.*"
    _add_judged(evaluate, keys)
    evaluate.add_argument("--shards", required=True, help="a finished build with labels")
    _add_split(evaluate)
    _add_plugin(evaluate)
    _add_device(evaluate)
    evaluate.add_argument("--classes-from-text", action="store_true", help="a classifier from the shards' class names")
    evaluate.add_argument(
        "--classes", metavar="NAME|A,B,...", help="objects of these classes alone: a subset (medium, hard) or a list"
    )
    evaluate.add_argument(
        "--candidates", choices=("subset", "all"), help="with --classes: answers are among these, or among all classes"
    )
    _add_other_neighbours(evaluate)
    evaluate.add_argument(
        "--votes", type=_some, default=1, metavar="N", help="clouds: mean logits of N passes, all but one scaled anew"
    )
    evaluate.add_argument(
        "--search-view-weights", default="", metavar="SPLIT", help="weights of views by the labels of a training split"
    )
    evaluate.add_argument("--beside", default="", metavar="VIEWS", help="of depth: RGB of the same objects beside it")
    evaluate.add_argument("--without-labels", action="store_true", help="read no label: the label-free analysis alone")
    _add_precision(evaluate)
    evaluate.add_argument("--out", metavar="DIR", help="confusion matrices, histograms and per-class figures")
    _add_workers(evaluate)
    _add_json(evaluate)


def _embed(embed: argparse.ArgumentParser) -> None:
    embed.add_argument("checkpoint", help=A_RUN)
    embed.add_argument("changes", nargs="*", metavar="data.key=value", help="such as data.classes=medium")
    _add_other_neighbours(embed)
    embed.add_argument("--shards", required=True, help="a finished build; no label is needed")
    embed.add_argument("--out", required=True, metavar="FILE.npz", help="keys, labels and features of every object")
    _add_split(embed)
    _add_who(embed)
    embed.add_argument("--per-view", action="store_true", help="also the features of every view")
    embed.add_argument("--picture", choices=("tsne", "umap"), help="also FILE.tsne.png or FILE.umap.png")
    _add_plugin(embed)
    _add_device(embed)
    _add_precision(embed)
    _add_workers(embed)


def _predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("checkpoint", help=A_RUN)
    predict.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="meshes or clouds, or folders of them at any depth; drawn by `python -m pipeline`",
    )
    predict.add_argument("--shards", help="predict the objects of a build instead of files")
    _add_split(predict)
    predict.add_argument("--classes", metavar="A,B,...", help="other names than the checkpoint's, by its text tower")
    predict.add_argument("--axes", default="", help="of FILEs, such as y,z,x where +Z is up; default: as trained")
    predict.add_argument("--html", metavar="PAGE", help="a page in one file: each object with its three best answers")
    predict.add_argument("--png", metavar="FILE", help="of a run of part segmentation: objects with parts in colours")
    predict.add_argument(
        "--views-weight", type=_decimals, default=[], metavar="A,B,...", help="of each view; default: all count alike"
    )
    _add_who(predict)
    _add_plugin(predict)
    _add_device(predict)
    _add_precision(predict)
    predict.add_argument("--workers", type=_count, default=0, metavar="N", help="processes that draw FILEs; 0: one")
    _add_json(predict)


def _probe(probe: argparse.ArgumentParser) -> None:
    _add_judged(probe, "keys of data; of weights without a run init.* (the other tower), image.*, points.*")
    _add_other_neighbours(probe)
    probe.add_argument("--shards", required=True, help="a finished build with labels")
    probe.add_argument("--train-split", default="train", help="what the classifier learns from; all of an episode")
    probe.add_argument("--test-split", default="test", help="what it is asked about; what is retrieved")
    probe.add_argument(
        "--features",
        choices=("points", "image", "both"),
        help="default: points; with --retrieval both, else side by side",
    )
    probe.add_argument(
        "--space", default="own", choices=("own", "clip"), help="the tower's own feature, or that of the shared space"
    )
    add_probe_tasks(probe)
    probe.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="'FLAGS'",
        help="a further probe of the same features, such as '--ways 5 --shots 10'; may be given again",
    )
    probe.add_argument("--plot", metavar="FILE.png", help="the last split's features in the plane, with 10-NN purity")
    probe.add_argument("--picture", default="tsne", choices=("tsne", "umap"), help="how --plot makes the plane")
    probe.add_argument("--without-random", action="store_true", help="leave out the random network of the same shape")
    probe.add_argument("--seed", type=_count, default=0, metavar="N", help="of the search, the episodes and the plane")
    _add_who(probe)
    _add_plugin(probe)
    _add_device(probe)
    _add_precision(probe)
    _add_workers(probe)
    _add_json(probe)


def add_probe_tasks(probe: argparse.ArgumentParser) -> None:
    """The flags that say what is probed; `--also` has those of a further probe of the same features."""
    probe.add_argument("--classifier", choices=("svm", "logistic", "knn"), help="default: svm, linear, one against one")
    probe.add_argument("--standardise", action="store_true", help="the first row is of standardised features, not raw")
    probe.add_argument(
        "--C",
        type=_strength,
        metavar="C|search",
        help="default: 0.01; logistic 1; search: on a fifth of the train split",
    )
    probe.add_argument("--ways", type=_some, metavar="N", help="few-shot episodes of N classes of the train split")
    probe.add_argument("--shots", type=_some, metavar="K", help="objects to learn a class from; default: 10")
    probe.add_argument(
        "--queries", type=_some, metavar="Q", help="objects of a class that are asked about; default: 20"
    )
    probe.add_argument("--episodes", type=_some, metavar="E", help="default: 10")
    probe.add_argument("--retrieval", action="store_true", help="recall and mAP, image to cloud, cloud to cloud, ...")


def _report(report: argparse.ArgumentParser) -> None:
    report.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="runs of the methods, also of several seeds; zero-shot: the first's step 0",
    )
    report.add_argument("--shards", required=True, help="what the runs were trained on")
    report.add_argument("--source", help="shards of the source domain, to show some of them")
    report.add_argument("--oracle", metavar="RUN", help="a run that was trained with labels: an upper bound")
    _add_split(report)
    report.add_argument("--out", metavar="DIR", help="default: the folder that holds the first RUN")
    _add_plugin(report)
    _add_device(report)
    report.add_argument("--json", action="store_true", help="print report.json")


def _table(table: argparse.ArgumentParser) -> None:
    table.add_argument("table", metavar="N", help="PAPER-N (crosspoint-1), N of Cross-MoST, or a .toml file")
    table.add_argument("changes", nargs="*", metavar="key=value", help="changed keys of every row; a row's own win")
    table.add_argument(
        "--shards",
        action="append",
        required=True,
        metavar="DIR",
        help="a folder with a build for each variant, or a build, or VARIANT=BUILD; may be given again",
    )
    table.add_argument("--run", required=True, help="folder of all runs and results; what is finished is not run again")
    table.add_argument("--rows", default="", metavar="a,b", help="these rows alone, by name; * and ? match")
    table.add_argument("--recipe", default="", help="the base of every row in place of its own")
    _add_preset(table)
    _add_plugin(table)
    _add_device(table)
    table.add_argument(
        "--seeds", type=numbers, default=(), metavar="0,1,2", help="each row with each: mean +- deviation"
    )
    table.add_argument("--processes", type=_some, default=1, metavar="N", help="of each fit, by torchrun: one a GPU")
    table.add_argument("--parallel", type=_some, default=1, metavar="K", help="runs at once, each on GPUs of its own")
    table.add_argument("--dry-run", action="store_true", help="say what would be run and what is missing (then exit 2)")
    _add_json(table)


def _weights(weights: argparse.ArgumentParser) -> None:
    weights.add_argument("file", nargs="?", help="a weights file of any kind, a run or one of its checkpoints")
    weights.add_argument("--where", action="store_true", help="instead of a file: where public ones are had")
    _add_plugin(weights)
    weights.add_argument("--take", default="student", choices=("student", "teacher"), help="of a file that holds both")
    weights.add_argument("--out", metavar="FILE", help="also write a run or checkpoint as one .safetensors file")
    _add_json(weights)


def _add_judged(command: argparse.ArgumentParser, keys: str) -> None:
    command.add_argument("checkpoint", help=f"{A_RUN}, or weights: a file, a tag of open_clip, MODEL:TAG")
    command.add_argument("changes", nargs="*", metavar="key=value", help=keys)
    command.add_argument("--recipe", default="", help="of weights without a run: its towers, views and precision")


def _add_preset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preset",
        default="",
        metavar="NAME",
        help="`released` (code) or `paper`: keys laid over the recipe, below yours",
    )


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument("--split", default="test", help="which objects of the build; default: test")


def _add_who(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--who", default="student", choices=("student", "teacher"), help="the trained model, or its moving average"
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")


def _add_plugin(command: argparse.ArgumentParser) -> None:
    add_plugin(command, "loss terms, methods or backbones")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: CUDA where torch sees a GPU"
    )


def _add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of the towers; default: as trained on CUDA, fp32 on the CPU",
    )


def _add_other_neighbours(command: argparse.ArgumentParser) -> None:
    words = "keys such as points.k=15 of a run may differ from those it learned with"
    command.add_argument("--other-neighbours", action="store_true", help=words)


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=_count, metavar="N", help="reader processes; default: data.workers, or 0")


def numbers(text: str) -> tuple[int, ...]:
    """Different whole numbers, 0 or more."""
    return tuple(dict.fromkeys(_count(part.strip()) for part in text.split(",")))


def _some(text: str) -> int:
    """A number, 1 or more."""
    if not _count(text):
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def _decimals(text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers, such as 0.25,1,1") from error


def _strength(text: str) -> float | str:
    """A number above 0, or `search`."""
    if text == "search":
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, and not search")
    return value


def _count(text: str) -> int:
    """A number, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number, 0 or more")
    return int(text)
