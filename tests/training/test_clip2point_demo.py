"""CLIP2Point's small demonstration: what it asks fits together, and its short form runs to a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.records import read_json
from training.paper_demo import main, read_demo
from training.paper_tables.table_rows import read_table


def test_its_rows_differ_in_what_is_claimed() -> None:
    demo, rows = read_demo("clip2point")
    table = read_table(str(rows)).by_name
    assert demo.claims[0].bars == {"zero_shot": 20.0}
    before, after, cross = (table[name].model_dump() for name in ("before", "after", "cross_only"))
    assert (before["run"], before["changes"]) == (after["run"], after["changes"])
    assert cross["changes"] == after["changes"] | {"clip2point": {"intra": 0}}
    adapters = [table[name].changes.get("adapter", {}) for name in ("single", "dual", "gated")]
    assert adapters == [{"paths": "depth"}, {"gate": "none"}, {}]


@pytest.mark.slow
def test_the_short_form_writes_a_report(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert main(["clip2point", "--quick", "--out", str(out), "--workers", "2"]) == 0
    found = read_json(str(out / "report.json"))
    assert found is not None
    shown = {row["name"]: row for row in found["table"]["rows"]}
    judged = {name for name, row in shown.items() if any(seed["values"]["zero_shot"] for seed in row["seeds"])}
    assert judged == {"before", "after"}
    assert all(0 < shown[name]["seeds"][0]["values"]["zero_shot"] <= 100 for name in judged)
    assert "Zero-shot on depth" in (out / "report.md").read_text()
