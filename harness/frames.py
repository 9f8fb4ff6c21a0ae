"""Reading back: a study's runs as DataFrames, typed, with what failed, diverged or is missing in its place."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import stdtrit
from tabulate import DataRow, Line, TableFormat, tabulate

from harness.blocks import Blocks, copies_of, distinct_names
from harness.config import FIELDS
from harness.errors import InputError, MissingArtifact, refusal
from harness.launched import Launched, newest
from harness.outage import IMPATIENT, told
from harness.store import Store, store_uri
from harness.study import METRICS, Study
from harness.survey import DIGESTS, STATES, Standing
from harness.tracking import RunLog

CONFIDENCE = 0.95
NARROW = TableFormat(
    None, Line("", "-", " ", ""), None, None, DataRow("", " ", ""), DataRow("", " ", ""), 0, None
)  # 80 columns
SHOWN = ("final/test_loss", "final/test_accuracy")
LARGEST = 1.797e308  # what MLflow makes of infinity


def trials(name: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """A search as last launched: a row per trial, the best first, and for each condition the command of its best setting.

    `value` is the metric on validation, at the epoch after which a pruned trial was given up. Nothing here is of the test set.
    Raises InputError when the store has seen no search of this name.
    """
    store = Store.there()
    found = newest(store, name) if store else None
    if found is None or "trials" not in found[1]:
        raise InputError(f"search {name} was never launched in the store {store_uri()}; launch it: harness search {name}")
    content = found[1]
    rows = [{**{k: v for k, v in row.items() if k != "setting"}, **row["setting"]} for row in content["trials"]]
    frame = pd.DataFrame(rows).astype({"value": float, "epochs": "Int64"})
    metric = content["search"]["study"]["metric"]
    rank = frame.state.map({"complete": 0, "pruned": 1}).fillna(2)  # a pruned trial's value is of an earlier epoch
    signed = frame.value if metric.endswith("_loss") else -frame.value
    order = pd.DataFrame({"condition": frame.condition, "rank": rank, "value": signed}).sort_values(
        ["condition", "rank", "value"], kind="stable"
    )
    return frame.loc[order.index].reset_index(drop=True), dict(content["best"])


def runs(study: str | Study | Launched) -> pd.DataFrame:
    """One row per cell of the study as last launched: state, parameters, final metrics, digests. No cell is left out."""
    return _runs(Launched.last(study))


def history(study: str | Study | Launched) -> pd.DataFrame:
    """One row per (run, epoch): losses, accuracies, health and seconds, in the store's names."""
    launched = Launched.last(study)
    begun = [standing for standing in launched.standings if standing.run is not None]
    # one process has one environment: its threads must not each change it
    with told(IMPATIENT), ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(lambda standing: _history(launched.store, standing), begun))
    # a run without an epoch, which has no types, would take those of the others away
    some = [frame for frame in frames if len(frame)]
    empty: dict[str, Any] = {"run_id": str, "variant": str, "seed": "int64", "state": str, "epoch": "int64"}
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame(columns=list(empty)).astype(empty)


def summary(study: str | Study | Launched, by: str | Sequence[str] = ()) -> pd.DataFrame:
    """One row per variant, or per setting of the parameters in `by`: n, mean, std, min, max, 95% t interval.

    n counts finished runs that did not diverge; diverged, failed and missing cells have columns of their own.

    Under `by` a value is the mean of a seed over `conditions`, the other settings that finished with every seed, and n counts
    seeds: runs of one seed share weights and batches, and a config that stands in several variants counts once. Raises
    InputError for an unknown parameter.
    """
    by = [by] if isinstance(by, str) else list(by)
    for name in by:
        if name not in FIELDS or name == "seed":
            raise InputError(refusal("by", name, [field for field in FIELDS if field != "seed"]))
    launched = Launched.last(study)
    frame = _runs(launched)
    metrics = dict.fromkeys([*SHOWN, launched.study.metric])
    if by:  # of copies the one that came furthest, under one name
        names = distinct_names(copies_of(frame, launched.study.reference))
        frame = frame.assign(variant=frame.variant.map(names))
        frame = frame.sort_values("state", key=lambda states: states.map(STATES.index), kind="stable")
        frame = frame.drop_duplicates("config_digest")
    rows = []
    for levels, group in frame.groupby(by or ["variant"], sort=bool(by), dropna=False):
        good, extra = group[group.state == "finished"], {}
        if by:
            whole = good.groupby("variant").seed.nunique() == good.seed.nunique()
            good = good[good.variant.isin(whole.index[whole])]
            extra = {"conditions": good.variant.nunique()}
            good = good.groupby("seed")[list(metrics)].mean()
        counts = {state: int((group.state == state).sum()) for state in STATES[1:]}
        numbers = {f"{_short(m)}_{what}": value for m in metrics for what, value in _describe(good[m]).items()}
        rows.append({**dict(zip(by or ["variant"], levels, strict=True)), "n": len(good), **extra, **counts, **numbers})
    return pd.DataFrame(rows)


def compare(study: str | Study) -> pd.DataFrame:
    """Each distinct variant beside the base, paired by seed: difference, interval, p values, verdict; docs/statistics.md.

    One row a variant but the base, copies of one config as one; `run_ids` has a space between the runs that a row rests on.
    """
    from harness.contrasts import compared  # statsmodels takes half a second

    launched = Launched.last(study)
    frame = compared(Blocks.of(launched.study, _runs(launched)), launched.looks)
    return frame.assign(run_ids=frame.run_ids.map(" ".join))


def each(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a frame, its columns as their attributes."""
    return iter(frame.itertuples())


def outline(summary: pd.DataFrame) -> pd.DataFrame:
    """What fits a screen: counts of what went wrong only where something did, and the two final test metrics; of a study that
    is on another metric that one alone.
    """
    names = [column for column in map(str, summary) if not any(column.startswith(_short(metric)) for metric in METRICS)]
    names = [name for name in names if name not in STATES or summary[name].any()]
    own = [metric for metric in METRICS if metric not in SHOWN and f"{_short(metric)}_mean" in summary]
    shown = [f"{_short(metric)}_{what}" for metric in own or SHOWN for what in ("mean", "std", "min", "max")]
    heads = {name: " ".join(name.removeprefix("test_").rsplit("_", 1)) for name in shown}
    return summary[[*names, *shown]].rename(columns=heads)


def verdicts(contrasts: pd.DataFrame) -> pd.DataFrame:
    """What fits a screen of `compare`: the difference with its interval, the verdict, and what would decide an open one."""
    shown = contrasts[["variant", "n", "difference", "low", "high", "verdict", "more_seeds"]]
    return shown.assign(more_seeds=shown.more_seeds.astype("Int64")).rename(columns={"more_seeds": "more seeds"})


def roster(runs: pd.DataFrame) -> pd.DataFrame:
    """What fits a screen of `runs`: where each stands, its final test metrics and its id; of validation where there is one."""
    why = ["reason"] if runs.reason.fillna("").ne("").any() else []
    validated = [metric for metric in METRICS if metric.startswith("final/val") and runs[metric].notna().any()]
    shown = {metric: metric.removeprefix("final/") for metric in (*SHOWN, *validated)}
    return runs[["variant", "seed", "state", *shown, "run_id", *why]].rename(columns=shown)


def text(frame: pd.DataFrame, kind: str) -> str:
    """A frame as `table`, `csv`, `json` (a list of rows) or `markdown`; numbers of csv and json to their last bit.

    What is not there is empty, in JSON null; JSON has no infinity, and gets "inf".
    """
    if kind == "csv":
        return frame.to_csv(index=False)
    values = [{name: _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]
    if kind == "json":
        finite = [{k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in row.items()} for row in values]
        return json.dumps(finite, indent=2) + "\n"
    cells = [[_cell(value) for value in row.values()] for row in values]
    sides = ["right" if pd.api.types.is_numeric_dtype(frame[name]) else "left" for name in frame]
    heads, style = (list(frame), "pipe") if kind == "markdown" else ([_head(str(name)) for name in frame], NARROW)
    return tabulate(cells, heads, style, disable_numparse=True, colalign=sides if cells else None) + "\n"


def _head(name: str) -> str:
    """A column's head on a narrow screen: a metric over its mean, then std, min and max of it."""
    metric, _, what = name.partition(" ")
    return {"": name, "mean": metric}.get(what, what)


def _plain(value: Any) -> Any:
    """A value of a frame as Python has it; None for one that is not there."""
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


def _cell(value: object) -> str:
    """Four decimals where they say something, six digits where they do not."""
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    return "" if value is None else str(value)


def _runs(launched: Launched) -> pd.DataFrame:
    rows = [_row(standing, launched.digests[standing.cell.name]) for standing in launched.standings]
    frame = pd.DataFrame(rows)
    whole = {"seed": "int64", "diverged_epoch": "Int64", "parameters": "Int64", "attempt": "Int64"}
    return frame.astype({name: kind for name, kind in whole.items() if name in frame})


def _row(standing: Standing, digests: Mapping[str, str]) -> dict[str, Any]:
    cell, run = standing.cell, standing.run
    tags: Mapping[str, str] = run.data.tags if run else {}
    metrics: Mapping[str, float] = run.data.metrics if run else {}
    row = cell.variant
    epoch = tags.get("diverged", "").removeprefix("epoch ")
    asked = {name: getattr(cell.config, name) for name in FIELDS if name not in ("seed", "dataset", "network")}
    return {
        "study": cell.study,
        "variant": row.name,
        "seed": cell.seed,
        "state": standing.state,
        "reason": standing.reason,
        "run_id": run.info.run_id if run else None,
        "factor": row.factor or None,
        "level": row.level or None,
        "condition": row.condition,
        "dataset": digests["dataset"],
        "network": cell.config.label("network"),
        **asked,
        **{name: _restored(metrics.get(name, math.nan)) for name in (*METRICS, "best/test_accuracy", "time/epoch_seconds")},
        "diverged_epoch": int(epoch) if epoch else None,
        "parameters": int(tags["parameters"]) if "parameters" in tags else None,
        "attempt": int(tags["attempt"]) if "attempt" in tags else None,
        "shared_with": tags.get("shared_with"),
        **{name: digests[name] for name in DIGESTS},
        **{name: tags.get(name) for name in ("state_digest", "history_digest")},
    }


def _history(store: Store, standing: Standing) -> pd.DataFrame:
    """The file that a finished run keeps, to the last bit; of another run what the store has."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            frame = _curves(RunLog(store, standing.run).fetch("history.csv", folder))
    except MissingArtifact:
        values: dict[int, dict[str, float]] = {}
        for name in standing.run.data.metrics:
            if not name.startswith(("final/", "best/")):
                for point in store.client.get_metric_history(standing.run.info.run_id, name):
                    values.setdefault(point.step, {})[name] = _restored(point.value)
        rows = [{"epoch": epoch, **values[epoch]} for epoch in sorted(values)]
        frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["epoch"])
    cell = standing.cell
    named = {"run_id": standing.run.info.run_id, "variant": cell.variant.name, "seed": cell.seed, "state": standing.state}
    return pd.DataFrame({**{name: [value] * len(frame) for name, value in named.items()}, **frame})


def _curves(path: Path) -> pd.DataFrame:
    """What `history_csv` wrote. Raises InputError for anything else."""
    try:
        frame = pd.read_csv(path, engine="python")  # exact
    except ValueError as error:
        raise InputError(f"{path} is no CSV of epochs; delete it, and the metrics of the store are read: {error}") from None
    if "epoch" not in frame:
        raise InputError(f"{path} has no column epoch; delete it, and the metrics of the store are read")
    return frame


def _describe(values: pd.Series[float]) -> dict[str, float]:
    """Mean, sample std, extremes and the 95% t interval of the mean; NaN where n is too small for it."""
    n, mean, std = len(values), float(values.mean()), float(values.std())
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(n) if n > 1 else math.nan
    ends = {"min": float(values.min()), "max": float(values.max()), "low": mean - half, "high": mean + half}
    return {"mean": mean, "std": std, **ends}


def _short(metric: str) -> str:
    return metric.partition("/")[2]


def _restored(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) > LARGEST else value
