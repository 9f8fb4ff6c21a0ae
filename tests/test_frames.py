"""Reading a study back: no cell left out, numbers to the last bit, statistics as by hand, the same from any store."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.file_utils import local_file_uri_to_path
from scipy import stats
from servers import served

import harness
from harness import frames
from harness.config import FIELDS
from harness.errors import InputError
from harness.results import EpochRecord, history_csv
from harness.study import METRICS, Study

ROOT = Path(__file__).resolve().parent.parent
BASE = {"dataset": "mnist_5k", "epochs": 2, "max_batches": 4, "hidden_dim": 8}
STUDY = Study(
    name="tiny",
    question="Is what was trained what is read?",
    design="one_factor_at_a_time",
    seeds=[0, 1, 2],
    base=BASE,
    factors={"init": ["normal", "kaiming"], "norm": ["none", "layernorm"], "lr": [1e9]},
)
HOT = "lr=1000000000"
VARIANTS = ["init=normal", "init=kaiming", "norm=none", "norm=layernorm", HOT]
# what was done to the store after the launch; the rest is finished, or diverged
ODD = {
    "init=kaiming-s2": ("missing", ""),
    "norm=none-s2": ("failed", "no reason recorded"),
    "norm=layernorm-s1": ("failed", "runtimeerror out of luck"),
    "norm=layernorm-s2": ("stale", "the code changed"),
}
CRITICAL_T = {2: 12.706204736432095, 3: 4.302652729911275}  # of Student's t at 97.5%, n - 1 degrees of freedom: any table
EXTREMES = {"test/loss": [math.inf, -math.inf, math.nan]}  # epochs 3, 4, 5 of the failed run


def cell(name: str) -> tuple[str, int]:
    variant, _, seed = name.rpartition("-s")
    return variant, int(seed)


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The working directory is another one than the store's, and empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


def cells(client: MlflowClient) -> dict[str, Run]:
    """Cell -> its run, as an outside program finds it."""
    experiment = client.get_experiment_by_name("tiny").experiment_id
    return {run.data.tags["cell"]: run for run in client.search_runs([experiment], "tags.study = 'tiny'")}


@pytest.fixture(scope="module")
def launched(place: Path, client: MlflowClient) -> dict[str, Run]:
    """A study after some bad days: cells finished, diverged, failed with and without a reason, missing and stale."""
    harness.run_study(STUDY, workers=0, share=True, say=lambda line: None)
    runs = cells(client)
    assert len(runs) == 15
    client.delete_run(runs["init=kaiming-s2"].info.run_id)
    failed = runs["norm=layernorm-s1"].info.run_id
    client.set_tag(failed, "error", ODD["norm=layernorm-s1"][1])
    for step, value in enumerate(EXTREMES["test/loss"], start=3):
        client.log_metric(failed, "test/loss", value, step=step)
    for name, number in (("final/train_loss", -math.inf), ("final/test_loss", math.inf), ("best/test_accuracy", math.nan)):
        client.log_metric(failed, name, number, step=2)
    artifact(runs["norm=layernorm-s1"], "history.csv").unlink()  # it never came to its end
    for name in ("norm=layernorm-s1", "norm=none-s2"):
        client.set_terminated(runs[name].info.run_id, "FAILED")
    client.set_tag(runs["norm=layernorm-s2"].info.run_id, "code_digest", "0" * 64)
    return cells(client)


def artifact(run: Run, name: str) -> Path:
    return Path(local_file_uri_to_path(run.info.artifact_uri)) / name


def values(launched: dict[str, Run], variant: str, metric: str, seeds: Sequence[int]) -> list[float]:
    return [launched[f"{variant}-s{seed}"].data.metrics[metric] for seed in seeds]


def points(client: MlflowClient, run: Run) -> dict[tuple[int, str], float]:
    """Every metric row of a run's epochs, infinity as it was before MLflow stored it."""
    keys = [key for key in run.data.metrics if not key.startswith(("final/", "best/"))]
    rows = {(row.step, key): row.value for key in keys for row in client.get_metric_history(run.info.run_id, key)}
    return {at: math.copysign(math.inf, value) if abs(value) > 1.797e308 else value for at, value in rows.items()}


# runs


@pytest.fixture
def runs(launched: dict[str, Run]) -> pd.DataFrame:
    return harness.runs("tiny")


def test_every_cell_has_a_row_in_the_order_of_the_study(runs: pd.DataFrame) -> None:
    wanted = [(variant, seed) for variant in VARIANTS for seed in (0, 1, 2)]
    assert list(zip(runs.variant, runs.seed, strict=True)) == wanted


def test_every_cell_has_its_state_and_why(runs: pd.DataFrame) -> None:
    plain = {(variant, seed): ("finished", "") for variant in VARIANTS for seed in (0, 1, 2)}
    wanted = plain | {(HOT, seed): ("diverged", "in epoch 1") for seed in (0, 1, 2)} | {cell(k): v for k, v in ODD.items()}
    assert {(row.variant, row.seed): (row.state, row.reason) for row in runs.itertuples()} == wanted


def test_cells_without_a_run_have_no_run_id_and_no_numbers(runs: pd.DataFrame) -> None:
    without = runs[runs.state.isin(["missing", "stale"])]
    assert list(zip(without.variant, without.seed, strict=True)) == [("init=kaiming", 2), ("norm=layernorm", 2)]
    assert without[["run_id", "state_digest", "attempt", *METRICS]].isna().all(axis=None)
    assert list(without["init"]) == ["kaiming", "normal"], "what a cell would be is known before it is"


def test_run_ids_are_those_of_the_store(runs: pd.DataFrame, launched: dict[str, Run]) -> None:
    found = {f"{row.variant}-s{row.seed}": row.run_id for row in runs.itertuples() if row.state not in ("missing", "stale")}
    assert found == {name: run.info.run_id for name, run in launched.items() if name != "norm=layernorm-s2"}


def test_columns_are_typed(runs: pd.DataFrame) -> None:
    kinds = {name: kind.kind for name, kind in runs.dtypes.items()}
    for name, field in FIELDS.items():
        wanted = {int: "i", float: "f"}.get(type(field.default))
        assert (kinds[name] == wanted) if wanted else pd.api.types.is_string_dtype(runs[name]), name
    assert {kinds[name] for name in (*METRICS, "best/test_accuracy", "time/epoch_seconds")} == {"f"}
    for name in ("diverged_epoch", "parameters", "attempt"):
        assert pd.api.types.is_integer_dtype(runs[name]), name
    for name in ("study", "variant", "state", "reason", "run_id", "condition", "config_digest", "state_digest"):
        assert pd.api.types.is_string_dtype(runs[name]), name
    assert runs.lr.iloc[-1] == 1e9
    assert runs.epochs.iloc[0] == 2


def test_final_metrics_are_the_store_s_to_the_bit(runs: pd.DataFrame, launched: dict[str, Run]) -> None:
    compared = 0
    for row in runs[runs.state.isin(["finished", "diverged"])].to_dict("records"):
        stored = launched[f"{row['variant']}-s{row['seed']}"].data.metrics
        for name in (*METRICS, "best/test_accuracy", "time/epoch_seconds"):
            if name in stored:
                assert row[name].hex() == stored[name].hex(), name
                compared += 1
            else:
                assert math.isnan(row[name]), name
    assert compared == 11 * 6


def test_infinity_and_nan_are_restored(runs: pd.DataFrame) -> None:
    (row,) = runs[(runs.variant == "norm=layernorm") & (runs.seed == 1)].to_dict("records")
    assert row["final/test_loss"] == math.inf
    assert row["final/train_loss"] == -math.inf
    assert math.isnan(row["best/test_accuracy"])


def test_tags_of_a_run_are_in_its_row(runs: pd.DataFrame, launched: dict[str, Run]) -> None:
    for row in runs[runs.state.isin(["finished", "diverged"])].to_dict("records"):
        tags = launched[f"{row['variant']}-s{row['seed']}"].data.tags
        for name in ("condition", "dataset", "factor", "level", "config_digest", "data_digest", "code_digest", "state_digest"):
            assert row[name] == tags[name], name
        assert (row["parameters"], row["attempt"]) == (int(tags["parameters"]), int(tags["attempt"]))
        assert pd.isna(row["shared_with"]) if "shared_with" not in tags else row["shared_with"] == tags["shared_with"]
    assert list(runs.shared_with.dropna()) == list(runs[runs.variant == "init=normal"].run_id)
    assert list(runs.diverged_epoch.dropna()) == [1, 1, 1]


def test_study_goes_by_its_name_or_itself(runs: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(harness.runs(STUDY), runs)


# history


@pytest.fixture
def history(launched: dict[str, Run]) -> pd.DataFrame:
    return harness.history("tiny")


def test_every_run_and_epoch_has_one_row(history: pd.DataFrame, runs: pd.DataFrame) -> None:
    assert not history.duplicated(["run_id", "epoch"]).any()
    epochs = {(variant, seed): list(rows.epoch) for (variant, seed), rows in history.groupby(["variant", "seed"])}
    usual = {(variant, seed): [0, 1, 2] for variant in VARIANTS for seed in (0, 1, 2)}
    wanted = usual | {(HOT, seed): [0, 1] for seed in (0, 1, 2)} | {("norm=layernorm", 1): [0, 1, 2, 3, 4, 5]}
    del wanted["init=kaiming", 2], wanted["norm=layernorm", 2]
    assert epochs == wanted
    states = history.merge(runs, on="run_id", suffixes=("", "_of_run"))
    assert len(states) == len(history)
    assert (states.state == states.state_of_run).all()


def test_history_is_the_store_s_metric_rows_to_the_bit(
    history: pd.DataFrame, launched: dict[str, Run], client: MlflowClient
) -> None:
    """Finished runs are read from their history.csv, the unfinished one from its metrics."""
    known = {"run_id", "variant", "seed", "state", "epoch"}
    for run_id, rows in history.groupby("run_id"):
        run = client.get_run(run_id)
        stored = points(client, run)
        read = {
            (row["epoch"], name): value
            for row in rows.to_dict("records")
            for name, value in row.items()
            if name not in known and ((row["epoch"], name) in stored or not math.isnan(value))
        }
        assert {at: value.hex() for at, value in read.items()} == {at: value.hex() for at, value in stored.items()}
    assert history.run_id.nunique() == 13


def test_unfinished_runs_are_read_from_their_metrics(history: pd.DataFrame, launched: dict[str, Run]) -> None:
    rows = history[history.run_id == launched["norm=layernorm-s1"].info.run_id]
    assert list(rows["test/loss"].iloc[3:5]) == [math.inf, -math.inf]
    assert math.isnan(rows["test/loss"].iloc[5])
    assert not [name for name in history if name.startswith(("final/", "best/"))]


def test_infinity_in_the_history_of_a_finished_run_is_restored(launched: dict[str, Run]) -> None:
    kept = artifact(launched[f"{HOT}-s2"], "history.csv")
    text = kept.read_text(encoding="utf-8")
    losses = [1 / 3, math.inf, -math.inf, math.nan]
    kept.write_text(
        history_csv([EpochRecord(epoch, {"test/loss": loss}) for epoch, loss in enumerate(losses)]), encoding="utf-8"
    )
    try:
        found = harness.history("tiny")
    finally:
        kept.write_text(text, encoding="utf-8")
    read = list(found[(found.variant == HOT) & (found.seed == 2)]["test/loss"])
    assert [value.hex() for value in read] == [value.hex() for value in losses]


def test_columns_of_the_history_are_the_store_s_names_and_typed(history: pd.DataFrame) -> None:
    health = {f"health/hidden1/{what}" for what in ("mean", "std", "saturated", "dead", "grad_norm")}
    curves = {"train/loss", "train/accuracy", "test/loss", "test/accuracy", "time/epoch_seconds"}
    assert set(history) == {"run_id", "variant", "seed", "state", "epoch"} | curves | health
    assert list(history)[:5] == ["run_id", "variant", "seed", "state", "epoch"]
    kinds = {name: kind.kind for name, kind in history.dtypes.items()}
    assert (kinds["seed"], kinds["epoch"]) == ("i", "i")
    assert {kinds[name] for name in curves | health} == {"f"}


# summary


@pytest.fixture
def summary(launched: dict[str, Run]) -> pd.DataFrame:
    return harness.summary("tiny")


GOOD = {"init=normal": [0, 1, 2], "init=kaiming": [0, 1], "norm=none": [0, 1], "norm=layernorm": [0], HOT: []}


def test_variants_stand_in_the_order_of_the_study(summary: pd.DataFrame) -> None:
    assert list(summary.variant) == VARIANTS


def test_what_is_no_result_is_counted_in_its_own_column(summary: pd.DataFrame) -> None:
    counted = summary.set_index("variant")[["n", "diverged", "running", "failed", "missing", "stale"]]
    assert {name: list(row) for name, row in counted.iterrows()} == {
        "init=normal": [3, 0, 0, 0, 0, 0],
        "init=kaiming": [2, 0, 0, 0, 1, 0],
        "norm=none": [2, 0, 0, 1, 0, 0],
        "norm=layernorm": [1, 0, 0, 1, 0, 1],
        HOT: [0, 3, 0, 0, 0, 0],
    }
    assert {kind.kind for kind in counted.dtypes} == {"i"}


@pytest.mark.parametrize("metric", ["test_loss", "test_accuracy"])
def test_statistics_are_those_worked_out_by_hand(metric: str, summary: pd.DataFrame, launched: dict[str, Run]) -> None:
    for row in summary.to_dict("records"):
        numbers = values(launched, row["variant"], f"final/{metric}", GOOD[row["variant"]])
        found = {what: row[f"{metric}_{what}"] for what in ("mean", "std", "min", "max", "low", "high")}
        n = len(numbers)
        if n == 0:
            assert all(map(math.isnan, found.values()))
            continue
        mean = sum(numbers) / n
        assert found["mean"] == pytest.approx(mean, rel=1e-12)
        assert (found["min"], found["max"]) == (min(numbers), max(numbers))
        if n == 1:
            assert all(math.isnan(found[what]) for what in ("std", "low", "high")), "one seed has no spread"
            continue
        std = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (n - 1))
        half = CRITICAL_T[n] * std / math.sqrt(n)
        assert found["std"] == pytest.approx(std, rel=1e-12)
        assert (found["low"], found["high"]) == pytest.approx((mean - half, mean + half), rel=1e-9)
        interval = stats.ttest_1samp(numbers, 0).confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx(tuple(interval), rel=1e-9)


def test_equal_configs_count_once_when_grouped_by_parameters(launched: dict[str, Run]) -> None:
    """The base stands in two variants, and failed in one of them: three runs, not six or five, and none failed."""
    found = harness.summary("tiny", by=("init", "norm"))
    columns = ["init", "norm", "n", "diverged", "failed", "missing", "stale"]
    assert {tuple(row) for row in found[columns].itertuples(index=False)} == {
        ("normal", "none", 3, 3, 0, 0, 0),
        ("kaiming", "none", 2, 0, 0, 1, 0),
        ("normal", "layernorm", 1, 0, 1, 0, 1),
    }
    (base,) = found[(found.init == "normal") & (found.norm == "none")].to_dict("records")
    numbers = values(launched, "init=normal", "final/test_loss", [0, 1, 2])
    assert base["test_loss_mean"] == pytest.approx(statistics.fmean(numbers), rel=1e-12)
    assert base["test_loss_std"] == pytest.approx(statistics.stdev(numbers), rel=1e-12)


def test_unknown_parameter_to_group_by_is_refused(launched: dict[str, Run]) -> None:
    with pytest.raises(InputError, match=r"by='nrom' is not allowed.*nearest: norm"):
        harness.summary("tiny", by=("init", "nrom"))


# compare


def test_variants_are_compared_with_the_base_seed_by_seed(launched: dict[str, Run]) -> None:
    found = harness.compare("tiny")
    assert list(found.variant) == ["init=kaiming", "norm=layernorm", HOT], "norm=none is the base under another name"
    assert set(found.reference) == {"init=normal"}
    assert set(found.metric) == {"final/test_loss"}
    rows = found.set_index("variant")
    assert list(rows.n) == [2, 1, 0]
    ours, base = (values(launched, name, "final/test_loss", [0, 1]) for name in ("init=kaiming", "init=normal"))
    first, second = (a - b for a, b in zip(ours, base, strict=True))
    mean, std = (first + second) / 2, abs(first - second) / math.sqrt(2)
    assert rows.level.tolist() == pytest.approx([1 - 0.05 / 3] * 3)
    critical = math.tan(math.pi / 2 * (1 - 0.05 / 3))  # Student's t with one degree of freedom is Cauchy's law
    half = critical * std / math.sqrt(2)
    by_hand = [mean, std, mean - half, mean + half]
    assert list(rows.loc["init=kaiming", ["difference", "std", "low", "high"]]) == pytest.approx(by_hand, rel=1e-9)
    one = launched["norm=layernorm-s0"].data.metrics["final/test_loss"] - base[0]
    assert rows.loc["norm=layernorm", "difference"] == pytest.approx(one, rel=1e-12)
    assert rows.loc["norm=layernorm", ["std", "low", "high"]].isna().all()
    assert rows.loc[HOT, ["difference", "std", "low", "high"]].isna().all()
    assert set(rows.verdict) == {"undecided"}
    assert "1 of 3 runs of norm=layernorm failed" in rows.reason["norm=layernorm"]
    assert "3 of 3 runs of lr=1000000000 diverged" in rows.reason[HOT]
    wanted = {launched[f"{name}-s{seed}"].info.run_id for name in ("init=normal", "init=kaiming") for seed in (0, 1)}
    assert set(rows.run_ids["init=kaiming"].split()) == wanted


def test_of_copies_the_run_that_is_there_stands_for_the_seed(launched: dict[str, Run], client: MlflowClient) -> None:
    base, copy = launched["init=normal-s0"].info.run_id, launched["norm=none-s0"].info.run_id
    client.set_terminated(base, "FAILED")
    try:
        rows = harness.compare("tiny").set_index("variant")
        assert copy in rows.run_ids["init=kaiming"].split(), "norm=none is the same config"
        client.set_terminated(copy, "FAILED")
        without = harness.compare("tiny").set_index("variant")
    finally:
        for run_id in (base, copy):
            client.set_terminated(run_id, "FINISHED")
    assert list(rows.n) == [2, 1, 0]
    assert list(without.n) == [1, 0, 0]
    ours, reference = (values(launched, name, "final/test_loss", [1])[0] for name in ("init=kaiming", "init=normal"))
    assert without.loc["init=kaiming", "difference"] == pytest.approx(ours - reference, rel=1e-12)
    assert "of init=normal failed" in without.reason["init=kaiming"]


# what has nothing to show, texts, and other stores


def test_study_that_has_only_begun_has_empty_frames(place: Path, client: MlflowClient) -> None:
    values = {"question": "?", "design": "list", "seeds": [0], "base": BASE, "variants": [{"name": "one"}]}
    study = Study(name="begun", **values)
    harness.run_study(study, workers=0, probe=False, say=lambda line: None)
    (run,) = client.search_runs([client.get_experiment_by_name("begun").experiment_id], "tags.study = 'begun'")
    client.delete_run(run.info.run_id)
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    again = client.create_run(run.info.experiment_id, tags=tags).info.run_id
    client.update_run(again, status="SCHEDULED")
    (row,) = harness.runs("begun").to_dict("records")
    assert (row["state"], row["reason"]) == ("missing", "scheduled")
    found = harness.history("begun")
    assert len(found) == 0
    assert {"run_id", "variant", "seed", "state", "epoch"} <= set(found)
    (row,) = harness.summary("begun").to_dict("records")
    assert (row["n"], row["missing"]) == (0, 1)
    assert math.isnan(row["test_loss_mean"])
    assert harness.compare("begun").empty, "there is nothing beside the base"
    client.delete_run(again)
    assert len(harness.history("begun")) == 0


def test_study_that_was_never_launched_is_named_with_its_command(place: Path, launched: dict[str, Run]) -> None:
    for read in (harness.runs, harness.history, harness.summary, harness.compare):
        with pytest.raises(
            InputError, match=r"study matrix was never launched in the store .*; launch it: harness study matrix"
        ):
            read("matrix")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_text_of_a_frame_has_its_numbers_to_the_last_bit(kind: str, history: pd.DataFrame, runs: pd.DataFrame) -> None:
    for frame in (history, runs):
        finite = frame[frame.state == "finished"]
        text = frames.text(finite, kind)
        rows = json.loads(text) if kind == "json" else list(csv.DictReader(io.StringIO(text)))
        for name, numbers in finite.select_dtypes("float").to_dict("list").items():
            read = [math.nan if row[name] in (None, "") else float(row[name]) for row in rows]
            assert [value.hex() for value in read] == [value.hex() for value in numbers], name


def test_infinity_survives_in_csv(runs: pd.DataFrame) -> None:
    (row,) = (row for row in csv.DictReader(io.StringIO(frames.text(runs, "csv"))) if row["reason"].endswith("luck"))
    assert [float(row[f"final/{name}_loss"]) for name in ("test", "train")] == [math.inf, -math.inf]


@pytest.mark.parametrize("kind", ["table", "markdown"])
def test_counts_and_settings_are_legible_in_a_table_of_numbers(kind: str) -> None:
    """Counts stay whole where every column is a number, and small levels do not round to nothing."""
    frame = pd.DataFrame({"lr": [1e-5, 2e-5, 0.01], "n": [3, 2, 3], "loss mean": [0.123456, 2.0, 3.0]})
    lines = [line.replace("|", " ").split() for line in frames.text(frame, kind).splitlines()[2:]]
    assert [line[1] for line in lines] == ["3", "2", "3"]
    assert [float(line[0]) for line in lines] == [1e-5, 2e-5, 0.01]
    assert lines[0][2] == "0.1235"


@pytest.mark.parametrize("kind", ["table", "markdown"])
def test_text_that_looks_like_a_number_stays_as_it_is_in_a_table(kind: str) -> None:
    frame = pd.DataFrame({"variant": ["lr=1e-05", "lr=0.1"], "level": ["1e-05", "0.1"]})
    lines = [line.replace("|", " ").split() for line in frames.text(frame, kind).splitlines()[2:]]
    assert lines == [["lr=1e-05", "1e-05"], ["lr=0.1", "0.1"]]


def test_reading_loads_no_torch(launched: dict[str, Run]) -> None:
    code = (
        "import sys, harness\n"
        "frames = [harness.runs('tiny'), harness.history('tiny'), harness.summary('tiny'), harness.compare('tiny')]\n"
        "print([len(frame) for frame in frames], {'torch', 'matplotlib', 'distributed'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "[15, 39, 5, 3] set()\n"


@pytest.mark.slow
def test_a_server_gives_the_same_frames_as_its_file(
    place: Path,
    launched: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def read(name: str) -> list[pd.DataFrame]:
        by = harness.summary(name, by=("init", "norm"))
        return [harness.runs(name), harness.history(name), harness.summary(name), by, harness.compare(name)]

    here = read("tiny")
    with served(tmp_path, place / "mlflow.db") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        there = read("tiny")
        # and one whose files lie with the server: the artifacts come over HTTP
        far = STUDY.model_dump() | {"name": "far", "seeds": (0, 1), "factors": {"init": ("kaiming",)}}
        harness.run_study(Study(**far), workers=0, say=lambda line: None)
        far_away = read("far")
    printed = "".join(capfd.readouterr())
    for mine, theirs in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    assert list(far_away[0].state) == ["finished", "finished"]
    drop = ["run_id", "variant", "state", "time/epoch_seconds"]
    ours = here[1][here[1].variant == "init=kaiming"].drop(columns=drop).reset_index(drop=True)
    pd.testing.assert_frame_equal(far_away[1].drop(columns=drop), ours, check_exact=True)
    assert printed == "", "MLflow's own lines and bars would stand between ours"
