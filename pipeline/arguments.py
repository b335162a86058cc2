"""The command line of the pipeline as argparse reads it: commands, options and their help."""

from __future__ import annotations

import argparse
import os

from manifests.cli import ShowVersion, add_plugin, completed_by, with_examples

PROGRAM = "python -m pipeline"
RETRY_KINDS = ("timeout", "memory", "crash", "data")
_EXAMPLES = {
    "build": (
        "build meshes --source my_meshes --out shards/mine",
        "build modelnet40 --source ModelNet40 --out shards/modelnet40 --workers 8 views.rgb12.image_size=128",
    ),
    "views": (
        "views rgb12 --shards shards/mine 'elevation_deg=[0]' name=rgb12_level",
        "views mvcnn12 --shards shards/modelnet40 --source modelnet40_images",
    ),
    "check": ("check shards/mine", "check shards/mine --source my_meshes", "check shards/mine --repair"),
    "inspect": ("inspect shards/mine", "inspect shards/mine --png sheet.png --objects 8"),
    "export": ("export shards/mine --format hf", "export shards/mine --format colmap --key chair_0890 --to scene"),
    "recipes": ("recipes", "recipes modelnet40"),
    "presets": ("presets", "presets rgb12"),
    "doctor": ("doctor", "doctor --json"),
}


def pipeline_parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """The parser of all commands. prog: the program's name in its help."""
    parser = argparse.ArgumentParser(prog=prog, description="3D datasets into training shards.")
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="a dataset into shards")
    recipe = build.add_argument("recipe", help="name of a shipped recipe (`recipes` lists them) or a .toml file")
    completed_by(recipe, _recipe_names)
    build.add_argument(
        "changes", nargs="*", metavar="key=value", help="changed keys, such as views.rgb12.image_size=128"
    )
    build.add_argument("--source", help="folder of the raw dataset")
    _add_follow_links(build)
    _add_plugin(build)
    build.add_argument("--out", required=True, help="folder or URL (s3://...) of the shards")
    build.add_argument("--dry-run", action="store_true", help="count, time three objects, predict; write nothing")
    _add_retry(build)
    _add_workers(build)
    views = commands.add_parser("views", help="a new view set for old shards")
    preset = views.add_argument("preset", help="name of a view preset (`presets` lists them)")
    completed_by(preset, _preset_names)
    views.add_argument(
        "changes", nargs="*", metavar="key=value", help="changed keys of the preset; name= names the set"
    )
    views.add_argument("--shards", required=True, help="a finished build")
    views.add_argument("--source", help="the raw dataset, needed where meshes are not stored")
    _add_follow_links(views)
    _add_plugin(views)
    _add_retry(views)
    _add_workers(views)
    check = commands.add_parser("check", help="verify every byte of a build")
    check.add_argument("out", metavar="OUT")
    check.add_argument("--against", metavar="OTHER", help="also compare with another build of the same recipe")
    check.add_argument("--deep", action="store_true", help="also decode every picture (ten times as long)")
    check.add_argument("--repair", action="store_true", help="make damaged shards again")
    check.add_argument(
        "--source", help="the raw dataset: compared with what the objects were made of; with --repair read where needed"
    )
    _add_follow_links(check)
    _add_plugin(check)
    _add_workers(check)
    inspect = commands.add_parser("inspect", help="a page with filters, or a contact sheet")
    inspect.add_argument("out", metavar="OUT")
    kinds = inspect.add_mutually_exclusive_group()
    kinds.add_argument("--png", metavar="FILE", help="a contact sheet")
    kinds.add_argument(
        "--html",
        metavar="FILE",
        help="a page in one file: views, clouds, warnings and failures (by itself: a new temporary file; on a desktop "
        "the browser opens it)",
    )
    inspect.add_argument("--objects", type=_count, help="so many of a build (12 on a sheet, 60 on a page)")
    inspect.add_argument("--views", type=_count, default=6, help="views a view set")
    inspect.add_argument("--split")
    _add_export(commands.add_parser("export", help="a build for other tools: Hugging Face, wids, COLMAP"))
    recipes = commands.add_parser("recipes", help="list the shipped recipes, or show one with all its keys")
    shown = recipes.add_argument("name", nargs="?", help="a shipped recipe or a .toml file")
    completed_by(shown, _recipe_names)
    _add_plugin(recipes)
    presets = commands.add_parser("presets", help="list the view presets, or show one")
    shown = presets.add_argument("name", nargs="?")
    completed_by(shown, _preset_names)
    _add_plugin(presets)
    doctor = commands.add_parser("doctor", help="what this machine lacks, and the command for each")
    doctor.add_argument("--json", action="store_true")
    for name, examples in _EXAMPLES.items():
        with_examples(commands.choices[name], *examples)
    return parser


def _recipe_names() -> list[str]:
    from manifests.config import names_in
    from pipeline.plan.build_recipe import RECIPES

    return names_in(RECIPES)


def _preset_names() -> list[str]:
    from manifests.presets import preset_names

    return preset_names()


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("out", metavar="OUT")
    export.add_argument(
        "--format",
        required=True,
        choices=("hf", "wids", "colmap"),
        help="hf: a dataset card and a table of samples; wids: indexes of the shards; colmap: one object's cameras",
    )
    export.add_argument("--to", metavar="DIR", help="a folder of its own (hf and wids link the shards there)")
    export.add_argument("--copy", action="store_true", help="hf, wids: copy the shards to --to in place of links")
    export.add_argument("--views", default="", metavar="SETS", help="these view sets only, with commas between them")
    export.add_argument("--key", help="colmap: the object (default: the first)")
    export.add_argument("--license", metavar="ID", help="hf: the source dataset's, such as cc-by-4.0")
    export.add_argument("--overwrite", action="store_true", help="write over a README.md or a COLMAP model")
    export.add_argument("--json", action="store_true")


def _count(text: str) -> int:
    """A number, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number, 0 or more")
    return int(text)


def _add_follow_links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow-links",
        action="append",
        default=[],
        metavar="DIR",
        help="links of the source, and paths in its files, may lead into this folder, too; again, or commas, for more",
    )


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    add_plugin(parser, "a dataset reader or view presets")


def _add_retry(parser: argparse.ArgumentParser) -> None:
    kinds = ",".join(RETRY_KINDS)
    parser.add_argument("--retry", default="", metavar="KINDS", help=f"make shards with these failures again: {kinds}")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_count, default=os.cpu_count() or 1, help="processes; 0: in this one, for debuggers"
    )
    where.add_argument("--ray", metavar="ADDRESS", help="join a running Ray cluster")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on stdout")
