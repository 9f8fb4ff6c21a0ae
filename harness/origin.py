"""How a study's numbers came about: code, versions, machine, data, time and cost, from what its runs recorded of themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from harness.frames import each
from harness.launched import Launched

PACKAGES = ("torch", "numpy", "mlflow", "scipy", "pandas", "statsmodels")


def origin(launched: Launched, runs: pd.DataFrame, history: pd.DataFrame) -> list[tuple[str, str]]:
    """Names and values, in the order in which people ask. A run that was copied has cost nothing and counts once."""
    trained = runs[runs.run_id.notna() & runs.shared_with.isna()]
    records = _records(launched, list(trained.run_id))
    study, states = launched.study, runs.state.value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.to_dict().items())
    rows = [
        ("design", f"{study.design}, {len(study.rows)} variants x {len(study.seeds)} seeds ({_seeds(study.seeds)}): {counts}"),
        ("metric", f"{study.metric}; smallest difference that matters: {study.matters or 'not declared'}"),
        ("data", _told(f"{row.dataset}, SHA-256 {row.data_digest[:16]}" for row in each(runs))),
        ("code", _told(_code(record["code"]) for record in records)),
        ("code digests", _told(record["code"]["digest"][:16] for record in records)),
        ("versions", _told(_versions(record["software"]) for record in records)),
        ("machine", _told(_machine(record) for record in records)),
        ("time", _time([record["volatile"] for record in records])),
        ("cost", _cost(history[history.run_id.isin(list(trained.run_id))], len(trained))),
        ("launches", _launches(launched, runs)),
    ]
    return [(name, value) for name, value in rows if value]


def _records(launched: Launched, run_ids: Sequence[str]) -> list[Mapping[str, Any]]:
    """The `record.json` of runs; one that is not there, or of another schema, is left out."""
    found = launched.parsed("record.json", run_ids, json.loads)
    return [content for content in found.values() if content.get("schema", 0) >= 2]


def _told(texts: Iterable[str]) -> str:
    """The distinct texts, the most frequent first, with their counts where they differ."""
    counts = Counter(texts).most_common()
    if len(counts) == 1:
        return counts[0][0]
    more = [f"and {len(counts) - 4} more"] if len(counts) > 4 else []
    return "; ".join([*(f"{text} ({count} runs)" for text, count in counts[:4]), *more])


def _seeds(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}..{seeds[-1]}" if whole else ", ".join(map(str, seeds[:20])) + ", …" * (len(seeds) > 20)


def _code(code: Mapping[str, Any]) -> str:
    commit = f", commit {code['commit'][:12]}" if code.get("commit") else ""
    return f"harness {code['harness']}{commit}{' and changes that are not committed' if code.get('dirty') else ''}"


def _versions(software: Mapping[str, Any]) -> str:
    packages = software["packages"]
    found = [f"{name} {software['torch'] if name == 'torch' else packages[name]}" for name in PACKAGES if name in packages]
    return ", ".join([f"Python {software['python']}", *found])


def _machine(record: Mapping[str, Any]) -> str:
    arithmetic, volatile = record["arithmetic"], record["volatile"]
    threads = f"{arithmetic['threads']} thread{'s' * (arithmetic['threads'] != 1)} a run"
    gpu = f", {arithmetic['gpu']}" if arithmetic.get("gpu") else ""
    processor = f"{arithmetic['processor']} ({volatile['cores']} cores), {arithmetic['capability']}"
    return f"{processor}, {threads}, numerics {arithmetic['numerics']}{gpu}; {volatile['system']}"


def _time(volatile: Sequence[Mapping[str, Any]]) -> str:
    """From when to when, and for how much of it at least one run was under way."""
    if not volatile:
        return ""
    spans = sorted((datetime.fromisoformat(v["began"]), datetime.fromisoformat(v["ended"])) for v in volatile)
    first, last = spans[0][0], max(end for _, end in spans)
    busy, until = 0.0, first
    for start, end in spans:
        busy += max((end - max(start, until)).total_seconds(), 0)
        until = max(until, end)
    shown = [moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") for moment in (first, last)]
    return f"{shown[0]} to {shown[1]} UTC, {busy:,.0f} s of it with a run under way"


def _cost(history: pd.DataFrame, count: int) -> str:
    if "time/epoch_seconds" not in history:
        return ""
    seconds = float(history["time/epoch_seconds"].sum())
    return f"{seconds:,.1f} core-seconds of training steps in {count} runs (evaluation and writing not counted)"


def _launches(launched: Launched, runs: pd.DataFrame) -> str:
    tags = launched.report.run.data.tags
    again = int((runs.attempt.fillna(1) > 1).sum())
    resumed = f"; {again} run{'s' * (again != 1)} went on after an interruption or a failure" if again else ""
    return f"{tags.get('launches', '1')}, edition {tags.get('edition', '')}{resumed}"
