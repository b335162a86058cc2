"""`python -m training.oracle`: trains the supervised upper bound of a report, by `fit` with method=supervised.

    python -m training.oracle small_cross_most --shards shards/target --run runs/oracle init.all=runs/pretrain

RECIPE is that of the method to bound: towers, optimiser, schedule and number of steps are its own, and the keys that
training/objectives/supervised.py does not read are left out.
"""

from __future__ import annotations

import argparse
import sys

from manifests.cli import parse_arguments
from training.__main__ import main as training


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit codes as those of `python -m training`."""
    parser = argparse.ArgumentParser(prog="python -m training.oracle", description="An upper bound: labels known.")
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parse_arguments(parser, arguments)
    if any(change.partition("=")[0] == "method" for change in options.changes):
        parser.error("the oracle's method is supervised: method= belongs to `python -m training fit`")
    places = ["--shards", options.shards, "--run", options.run, "--device", options.device]
    return training(["fit", options.recipe, *places, "method=supervised", *options.changes])


if __name__ == "__main__":
    sys.exit(main())
