"""The chart page of a study, as MLflow's UI keeps a shared view: grouped by variant, test and train curves first."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

UI = "http://127.0.0.1:5000"  # where `mlflow ui` serves by default
TAG = "mlflow.sharedViewState."  # of an experiment; the rest of the tag's name is the view's
LONGEST = 20_000  # characters of a value that MLflow takes for a tag of an experiment
SCALES = {"loss": "log", "accuracy": "linear"}


def search(tags: Mapping[str, str]) -> str:
    """The filter that finds the runs which have these tags."""
    return " and ".join(f"tags.{key}='{value}'" for key, value in tags.items())


def filtered(experiment_id: str, tags: Mapping[str, str]) -> str:
    """Where the UI draws the runs that have these tags beside each other, each for itself."""
    return f"{_page(experiment_id)}&searchFilter={quote(search(tags))}"


def shared(experiment_id: str, name: str) -> str:
    """Where the UI opens the view that an experiment keeps under this name."""
    return f"{_page(experiment_id)}&viewStateShareKey={name}"


def view(tags: Mapping[str, str], variants: Sequence[str], parts: Sequence[str]) -> str:
    """The view of the runs that have these tags: a mean curve with its min-max band for each variant.

    For each of the parts (test, train, val) a row of loss, on a log scale, and accuracy; below them the UI adds charts of
    all other metrics. By itself it shows the newest ten runs, one curve each, and the parts below everything that comes
    before them in the alphabet. The keys are those of MLflow 3.17, which is pinned.
    """
    state: dict[str, Any] = {
        "searchFilter": search(tags),
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "variant"}]},
        "isAccordionReordered": True,  # else the UI sorts the sections by name
        "compareRunSections": [_section(part) for part in parts],
        "compareRunCharts": [_curve(part, what) for part in parts for what in SCALES],
    }
    closed = {"groupsExpanded": {f"tag.variant.{variant}": False for variant in variants}}
    text = _deflated({**state, **closed})
    return text if len(text) <= LONGEST else _deflated(state)  # then the list of runs begins unfolded


def _deflated(state: Mapping[str, Any]) -> str:
    return "deflate;" + b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _page(experiment_id: str) -> str:
    return f"{UI}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"


def _section(part: str) -> dict[str, Any]:
    return {"uuid": part, "name": part, "display": True, "isReordered": True, "columns": len(SCALES), "cardHeight": 360}


def _curve(part: str, what: str) -> dict[str, Any]:
    metric = f"{part}/{what}"
    return {
        "type": "LINE",
        "uuid": metric,
        "metricSectionId": part,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": metric,
        "deleted": False,
        "isGenerated": True,
        "scaleType": SCALES[what],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "useGlobalXaxisKey": False,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "ignoreOutliers": False,
    }
