"""What is printed under a table: its notes and those of its rows, what figures rest on, and why some are missing."""

from __future__ import annotations

from typing import Any

from training.paper_tables.columns import EVALUATED
from training.settings.row_terms import SCANOBJECTNN, term_words


def several(comparison: dict[str, Any]) -> bool:
    """Whether some row was asked for with several seeds."""
    return any(len(row["seeds"]) > 1 for row in comparison["rows"])


def remarks(comparison: dict[str, Any], intervals: bool = True) -> list[str]:
    """Notes of the table and of its rows, what they rest on, and why rows, or seeds of a row, are missing.

    intervals: also those of the means over seeds.
    """
    notes = list(comparison["notes"])
    if several(comparison):
        same = "; all begin with the same weights" if set(comparison["columns"]) <= set(EVALUATED) else ""
        notes.append(f"+- after a figure is the sample deviation of its seeds (n - 1){same}.")
        notes += [line for row in comparison["rows"] if intervals and (line := _intervals(comparison, row))]
    if seeds := sorted({seed["seed"] for row in comparison["rows"] for seed in row["seeds"]}):
        notes.append(f"Seed{'s' * (len(seeds) > 1)} of every row of ours: {', '.join(map(str, seeds))}.")
    notes += _terms(comparison)
    notes += [f"{row['label']}: {row['note']}" for row in comparison["rows"] if row["note"]]
    notes += [line for row in comparison["rows"] if (line := _gains(comparison, row))]
    before = comparison["pretrain"]
    notes += [f"{before['run']}: failed, {before['error']}"] if before and before["error"] else []
    for row in comparison["rows"]:
        missing = [seed for seed in row["seeds"] if seed["error"] or (row["n"] and seed["status"] != "done")]
        for seed in missing:
            of = f", seed {seed['seed']}" if len(row["seeds"]) > 1 else ""
            notes.append(f"{row['label']}{of}: {seed['status']}" + (f", {seed['error']}" if seed["error"] else ""))
    lacks = {(column, why) for row in comparison["rows"] for column, why in row["lacks"].items()}
    for column, why in sorted(lacks):
        rows = ", ".join(row["label"] for row in comparison["rows"] if row["lacks"].get(column) == why)
        notes.append(f"{comparison['heads'][column]}: {why}, so no figure of {rows}.")
    return notes


def _intervals(comparison: dict[str, Any], row: dict[str, Any]) -> str:
    told = [
        f"{comparison['heads'][column]} {figure['interval'][0]:.2f} to {figure['interval'][1]:.2f}"
        for column, figure in row["figures"].items()
        if figure["interval"]
    ]
    return f"{row['label']}: 95% interval of the mean over seeds (t): {', '.join(told)}." if told else ""


def _gains(comparison: dict[str, Any], row: dict[str, Any]) -> str:
    """The paired differences from the row's baseline."""
    told = []
    for column, figure in row["figures"].items():
        if found := figure["gain"]:
            ends = found["interval"]
            told.append(
                f"{comparison['heads'][column]} {found['mean']:+.2f}"
                + (f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "")
            )
    return f"{row['label']} minus {row['baseline']}, seed by seed: {', '.join(told)}." if told else ""


def _terms(comparison: dict[str, Any]) -> list[str]:
    """What rows rest on: once what all share, by row what differs; then what each column is."""
    own = {row["label"]: term_words(row["terms"]) for row in comparison["rows"] if row["terms"]}
    if not own:
        return []
    keys = list(dict.fromkeys(key for words in own.values() for key in words))
    shared = {key for key in keys if len({words.get(key) for words in own.values()}) == 1} - {"seeds"}
    first = next(iter(own.values()))
    notes = [f"Every row of ours: {', '.join(first[key] for key in keys if key in shared)}."] if shared else []
    for label, words in own.items():
        if told := [words[key] for key in keys if key in words and key not in shared | {"seeds"}]:
            notes.append(f"{label}: {', '.join(told)}.")
    for column, head in comparison["heads"].items():
        if column in EVALUATED:
            continue
        found = [row["terms"]["columns"][column] for row in comparison["rows"] if _has_facts(row, column)]
        told = list(dict.fromkeys(map(_fact_words, found)))
        notes += [f"{head}: {each}." for each in told]
    return notes


def _has_facts(row: dict[str, Any], column: str) -> bool:
    return bool(row["terms"] and row["terms"]["columns"].get(column))


def _fact_words(facts: dict[str, Any]) -> str:
    """`svm, C 0.01, raw features, modelnet40 (train, test)`."""
    words = []
    if "ways" in facts:
        words.append(
            f"{facts['ways']}-way {facts['shots']}-shot, {facts['queries']} queries, {facts['episodes']} episodes"
        )
    words += [facts["classifier"]] if "classifier" in facts else []
    words += [f"C {facts['C']:g}"] if "C" in facts else []
    if "standardised" in facts:
        words.append("standardised features" if facts["standardised"] else "raw features")
    variant = SCANOBJECTNN.get(facts.get("dataset", ""))
    split = facts.get("splits") or ([facts["split"]] if "split" in facts else [])
    named = [*split, *([f"partition {facts['partition']}"] if facts.get("partition") else [])]
    words += [f"ScanObjectNN {variant}"] if variant else []
    words += [f"{facts['dataset']} ({', '.join(map(str, named))})"] if "dataset" in facts else []
    return ", ".join(words + ([f"value {facts['value']}"] if "value" in facts else []))
