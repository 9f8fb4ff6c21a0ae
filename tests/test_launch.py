"""One run end to end: what is in the store is what was asked for, trained and measured; every ending is one state."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from torch import nn

import harness
from harness import data, launch, tracking
from harness.checkpoint import Checkpoint, state_digest
from harness.config import FIELDS, RunConfig
from harness.errors import InputError, StoreError
from harness.journal import Entry
from harness.launch import RunResult
from harness.results import EpochRecord, history_digest
from harness.sources import code_digest
from harness.store import Store
from harness.tracking import RunLog
from harness.training import subsets

ROOT = Path(__file__).resolve().parent.parent
ASKED = RunConfig(
    dataset="mnist_5k", epochs=3, dropout=0.2, norm="batchnorm", act="relu", init="kaiming", validation=0.1, hidden_dim=24
)
TINY = RunConfig(dataset="mnist_5k", epochs=2, max_batches=4, hidden_dim=6)
ALPHABET = re.compile(r"[a-z0-9 ._=-]+")
HEALTH = {f"health/hidden1/{what}" for what in ("mean", "std", "saturated", "dead", "grad_norm")}
FINAL = {f"final/{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy")} | {"best/test_accuracy"}


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The working directory is another one than the store's, and empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="module")
def finished(place: Path) -> RunResult:
    return harness.train(ASKED)


@pytest.fixture
def run(client: MlflowClient, finished: RunResult) -> Run:
    return client.get_run(finished.run_id)


@pytest.fixture
def artifact(client: MlflowClient, finished: RunResult, tmp_path: Path) -> Callable[[str], Path]:
    """Fetches an artifact as an outside program would: through MLflow."""
    return lambda name: Path(client.download_artifacts(finished.run_id, name, str(tmp_path)))


def metrics(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every row of every metric."""
    keys = client.get_run(run_id).data.metrics
    return {key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)] for key in keys}


def runs(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def paths(client: MlflowClient, run_id: str, folder: str = "") -> set[str]:
    found = client.list_artifacts(run_id, folder)
    return {p for item in found for p in (paths(client, run_id, item.path) if item.is_dir else {item.path})}


# what is in the store


def test_run_is_finished_under_its_name_in_the_experiment_harness(client: MlflowClient, run: Run, finished: RunResult) -> None:
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "harness"
    assert run.info.run_name == f"{ASKED.condition}-s0" == finished.name
    assert run.info.end_time >= run.info.start_time


def test_params_are_the_config_as_it_was_asked_for(run: Run) -> None:
    assert run.data.params == ASKED.text()
    assert set(run.data.params) == set(FIELDS)
    assert RunConfig(**run.data.params) == ASKED


def test_every_metric_has_every_step_once(client: MlflowClient, finished: RunResult) -> None:
    found = {key: [step for step, _ in rows] for key, rows in metrics(client, finished.run_id).items()}
    from_start = {f"{part}/{what}" for part in ("val", "test") for what in ("loss", "accuracy")} | HEALTH
    expected = {key: [0, 1, 2, 3] for key in from_start}
    expected |= {key: [1, 2, 3] for key in ("train/loss", "train/accuracy", "time/epoch_seconds")}
    expected |= {key: [3] for key in FINAL}
    assert found == expected


def test_metrics_are_the_history_of_the_result(client: MlflowClient, finished: RunResult) -> None:
    found = metrics(client, finished.run_id)
    assert {(key, step): value for key, rows in found.items() for step, value in rows if key not in FINAL} == {
        (key, record.epoch): value for record in finished.history for key, value in record.metrics().items()
    }
    assert {key: rows[0][1] for key, rows in found.items() if key in FINAL} == finished.final
    assert finished.final["best/test_accuracy"] == max(r.curves["test/accuracy"] for r in finished.history if r.epoch)
    assert all(0 <= value <= 1 for key, rows in found.items() if key.endswith("accuracy") for _, value in rows)


def test_tags_are_those_of_the_vocabulary_in_their_alphabet(run: Run, finished: RunResult) -> None:
    own = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    for key, value in {**own, "run name": run.info.run_name}.items():
        assert ALPHABET.fullmatch(key.replace("run name", "name")), key
        assert ALPHABET.fullmatch(value), (key, value)
    assert own == {
        "dataset": "mnist_5k",
        "study": "harness",
        "variant": ASKED.condition,
        "condition": ASKED.condition,
        "seed": "0",
        "cell": f"{ASKED.condition}-s0",
        "config_digest": ASKED.digest,
        "data_digest": data.load("mnist_5k", "unused").digest,
        "code_digest": code_digest(ASKED),
        "state_digest": finished.state_digest,
        "history_digest": finished.history_digest,
        "attempt": "1",
        "parameters": str(784 * 24 + 24 + 2 * 24 + 24 * 10 + 10),
    }


def test_run_of_one_factor_is_tagged_with_factor_and_level(client: MlflowClient, place: Path) -> None:
    """Only one that differs from the defaults in a single field has them."""
    tiny = client.get_run(harness.train(TINY, probe=False).run_id)
    assert "factor" not in tiny.data.tags
    one = client.get_run(harness.train(RunConfig(dataset="mnist_5k", seed=3), probe=False).run_id).data.tags
    assert (one["factor"], one["level"], one["seed"]) == ("dataset", "mnist_5k", "3")


def test_artifacts_are_all_there(client: MlflowClient, finished: RunResult) -> None:
    wanted = {
        "config.json",
        "record.json",
        "history.csv",
        "histograms.json",
        "plots/history.png",
        "plots/activations.png",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    }
    found = paths(client, finished.run_id)
    assert {path for path in found if not path.startswith("model/")} == wanted


def test_everything_of_a_run_lies_beside_the_store(place: Path, finished: RunResult) -> None:
    """Wherever it was started: the working directory stays as it was."""
    assert not list(Path.cwd().iterdir())
    assert list((place / "mlruns" / "harness" / finished.run_id / "artifacts").iterdir())


def test_model_belongs_to_the_experiment_of_its_run(client: MlflowClient, run: Run, finished: RunResult) -> None:
    everywhere = [e.experiment_id for e in client.search_experiments()]
    models = [m for m in client.search_logged_models(everywhere) if m.source_run_id == finished.run_id]
    assert [(model.name, model.experiment_id) for model in models] == [("model", run.info.experiment_id)]


def test_config_is_read_back_typed_and_resolved(artifact: Callable[[str], Path], finished: RunResult) -> None:
    text = artifact("config.json").read_text(encoding="utf-8")
    assert RunConfig.from_json(text) == finished.config == ASKED
    assert json.loads(text)["dropout"] == 0.2
    assert json.loads(text)["epochs"] == 3


def test_history_file_equals_the_metrics(artifact: Callable[[str], Path], client: MlflowClient, finished: RunResult) -> None:
    table = pd.read_csv(artifact("history.csv")).set_index("epoch")
    assert list(table.index) == [0, 1, 2, 3]
    in_file = {(key, step): table.loc[step, key] for key in table for step in table.index if not np.isnan(table.loc[step, key])}
    in_store = {(key, step): v for key, rows in metrics(client, finished.run_id).items() for step, v in rows}
    assert in_file == {(key, step): v for (key, step), v in in_store.items() if key not in FINAL}


def test_record_says_under_what_the_run_ran(artifact: Callable[[str], Path], finished: RunResult) -> None:
    text = artifact("record.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert text == json.dumps(record, indent=2, sort_keys=True) + "\n"
    assert record["schema"] == 2
    assert RunConfig(**record["config"]) == ASKED
    assert record["config_digest"] == ASKED.digest
    assert record["data"]["digest"] == data.load("mnist_5k", "unused").digest
    assert list(record["data"]["files"]) == ["mnist_5k.csv.gz"]
    assert record["software"]["torch"] == torch.__version__
    assert record["software"]["packages"]["numpy"] == np.__version__
    assert (record["arithmetic"]["threads"], record["arithmetic"]["flush_denormal"]) == (1, True)
    assert {"training.train", "training.exact_arithmetic", "components.norms.NORMS"} <= set(record["code"]["definitions"])
    trained = sum(done.seconds or 0 for done in finished.history)
    spent, evaluated = (record["volatile"][name] for name in ("wall_seconds", "evaluation_seconds"))
    assert min(trained, evaluated) > 0
    assert trained + evaluated < spent


def test_record_traces_the_run_through_its_epochs(artifact: Callable[[str], Path], finished: RunResult) -> None:
    traced = json.loads(artifact("record.json").read_text(encoding="utf-8"))["trace"]
    assert traced["metrics"] == finished.history_digest
    assert traced["epochs"][-1] == finished.state_digest
    assert traced["epochs"][0] == traced["initial_weights"]
    assert len(set(traced["epochs"])) == len(finished.history)
    best = Checkpoint.load(artifact("checkpoints/best.safetensors"))
    assert traced["epochs"][best.epoch] == state_digest(best.state)


@pytest.mark.parametrize("name", ["plots/history.png", "plots/activations.png"])
def test_plots_are_pictures_with_something_on_them(name: str, artifact: Callable[[str], Path]) -> None:
    content = artifact(name).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(io.BytesIO(content))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 20


def test_data_are_inputs_of_the_run_with_their_digest(run: Run, finished: RunResult) -> None:
    digest, found = data.load("mnist_5k", "unused").digest, {}
    for item in run.inputs.dataset_inputs:
        context = next(tag.value for tag in item.tags if tag.key == "mlflow.data.context")
        found[context] = (item.dataset.name, json.loads(item.dataset.profile)["samples"])
        assert json.loads(item.dataset.source)["sha256"] == digest
        assert digest.startswith(item.dataset.digest)
    assert found["testing"] == ("mnist_5k-testing", 1000)
    assert found["training"][0] == "mnist_5k-training"
    assert sum(samples for _, samples in found.values()) == 5000


# the model and the checkpoints


def logits_of(module: Any, images: torch.Tensor, batch: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([module(part) for part in images.split(batch)])


def test_model_of_the_store_predicts_as_the_checkpoint_for_any_batch_size(finished: RunResult) -> None:
    ours, theirs = harness.load_model(finished.run_id), mlflow.pytorch.load_model(f"runs:/{finished.run_id}/model")
    images = data.load("mnist_5k", "unused").test.images[:64]
    for batch in (1, 2, 3, 7, 64):
        torch.testing.assert_close(logits_of(theirs, images, batch), logits_of(ours, images, batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours(images.view(-1, 28, 28)), ours(images))
    assert torch.equal(logits_of(theirs, images, 5).argmax(1), logits_of(ours, images, 5).argmax(1))


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_loaded_model_reproduces_the_final_metrics_in_plain_torch(kind: str, finished: RunResult) -> None:
    found = data.load("mnist_5k", "unused")
    uri = f"runs:/{finished.run_id}/model"
    module = harness.load_model(finished.run_id) if kind == "checkpoint" else mlflow.pytorch.load_model(uri)
    learned, held_out = subsets(ASKED, len(found.train))
    for part, images, labels in (
        ("test", found.test.images, found.test.labels),
        ("train", found.train.images[learned], found.train.labels[learned]),
        ("val", found.train.images[held_out], found.train.labels[held_out]),
    ):
        logits = logits_of(module, images, 500)
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        assert accuracy == pytest.approx(finished.final[f"final/{part}_accuracy"], abs=1e-12)
        loss = nn.functional.cross_entropy(logits.double(), labels).item()
        assert loss == pytest.approx(finished.final[f"final/{part}_loss"], rel=1e-5)


def test_model_serves_through_mlflows_own_door(finished: RunResult) -> None:
    served = mlflow.pyfunc.load_model(f"runs:/{finished.run_id}/model")
    images = data.load("mnist_5k", "unused").test.images[:5]
    expected = logits_of(harness.load_model(finished.run_id), images, 5).numpy()
    np.testing.assert_allclose(served.predict(images.numpy()), expected, rtol=1e-5, atol=1e-5)


def test_last_checkpoint_is_the_end_of_the_run(artifact: Callable[[str], Path], finished: RunResult) -> None:
    last = Checkpoint.load(artifact("checkpoints/last.safetensors"))
    assert (last.config, last.epoch, last.chosen_by) == (ASKED, 3, "")
    assert last.steps == 3 * -(-3600 // 32)
    assert state_digest(last.state) == finished.state_digest
    assert history_digest(last.history) == finished.history_digest


def best_of(result: RunResult, name: str) -> int:
    return min((record for record in result.history if record.epoch), key=lambda r: r.curves[name]).epoch


def test_best_checkpoint_is_chosen_on_validation_where_there_is_one(
    artifact: Callable[[str], Path], finished: RunResult
) -> None:
    best = Checkpoint.load(artifact("checkpoints/best.safetensors"))
    assert best.chosen_by == "val/loss"
    assert best.epoch == best_of(finished, "val/loss")


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_best_checkpoint_is_not_merely_the_last_one(validation: float, place: Path) -> None:
    """At a learning rate where the loss goes up and down, the best epoch of some seed lies in the middle."""
    chosen_by = "val/loss" if validation else "test/loss"
    wild = TINY.replace(lr=4.0, init="torch", epochs=9, max_batches=9, validation=validation)
    tried = (harness.train(wild.replace(seed=seed), probe=False) for seed in range(12))
    result = next(result for result in tried if best_of(result, chosen_by) < 9)
    found = Checkpoint.load(place / "mlruns/harness" / result.run_id / "artifacts/checkpoints/best.safetensors")
    assert (found.epoch, found.chosen_by) == (best_of(result, chosen_by), chosen_by)
    assert found.history[-1] == result.history[found.epoch]
    best_model = harness.load_model(result.run_id, "best").state_dict()
    assert state_digest({name: best_model[name] for name in found.state}) == state_digest(found.state)
    assert state_digest(found.state) != result.state_digest


def test_no_artifact_is_a_pickle(client: MlflowClient, place: Path, finished: RunResult, tmp_path: Path) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{finished.run_id}/model", dst_path=str(tmp_path)))
    files = [path for path in (*folder.rglob("*"), *(place / "mlruns").rglob("*")) if path.is_file()]
    assert any(path.suffix == ".pt2" for path in files)
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pth", ".pt", ".bin")
        assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path


def test_unknown_run_cannot_be_loaded(place: Path, finished: RunResult) -> None:
    with pytest.raises(InputError, match=r"'0123' is not in the store sqlite:.*set MLFLOW_TRACKING_URI"):
        harness.load_model("0123")


# the description


def test_description_says_what_was_done_and_what_came_out(run: Run, finished: RunResult) -> None:
    what, out, bits, again = run.data.tags["mlflow.note.content"].split("\n\n")
    assert f"**{ASKED.condition}**" in what
    assert "3 epochs of mnist_5k" in what
    assert f"accuracy {finished.final['final/test_accuracy']:.4f}" in out
    assert "diverged" not in out
    assert finished.state_digest[:16] in bits
    assert finished.history_digest[:16] in bits
    assert again.startswith("**Again**: `harness train ")


def command_of(run: Run) -> list[str]:
    found = re.search(r"\*\*Again\*\*: `harness (.*)`", run.data.tags["mlflow.note.content"])
    assert found
    return shlex.split(found[1])


def start(folder: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def repeated(client: MlflowClient, finished: RunResult, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The command of the description, in three fresh processes that start at once on a store that is not there yet."""
    folder = tmp_path_factory.mktemp("three")
    command = command_of(client.get_run(finished.run_id))
    settings = [
        {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
        {"PYTHONHASHSEED": "3", "OMP_NUM_THREADS": "3", "LC_ALL": "C"},
    ]
    processes = [start(folder, *command, **env) for env in settings]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    return runs(MlflowClient(f"sqlite:///{folder}/mlflow.db"))


def test_three_processes_that_start_at_once_on_a_fresh_store_all_finish(repeated: list[Run]) -> None:
    assert [run.info.status for run in repeated] == ["FINISHED"] * 3
    assert len({run.info.experiment_id for run in repeated}) == 1


def test_command_of_the_description_gives_the_same_bits_in_fresh_processes(repeated: list[Run], finished: RunResult) -> None:
    for name in ("state_digest", "history_digest", "config_digest", "data_digest"):
        (found,) = {run.data.tags[name] for run in repeated}
        assert (
            found
            == {
                "state_digest": finished.state_digest,
                "history_digest": finished.history_digest,
                "config_digest": ASKED.digest,
                "data_digest": data.load("mnist_5k", "unused").digest,
            }[name]
        )


# what a run leaves alone


def test_second_training_in_one_process_without_probe_has_the_same_bits_and_no_health(
    client: MlflowClient, finished: RunResult
) -> None:
    again = harness.train(ASKED, probe=False)
    assert (again.state_digest, again.history_digest) == (finished.state_digest, finished.history_digest)
    assert again.run_id != finished.run_id
    assert not {key for key in metrics(client, again.run_id) if key.startswith("health/")}
    assert "plots/activations.png" not in paths(client, again.run_id)
    assert "plots/history.png" in paths(client, again.run_id)


def test_training_after_other_runs_and_draws_has_the_same_bits(place: Path) -> None:
    torch.manual_seed(1)
    first = harness.train(TINY, probe=False)
    harness.train(TINY.replace(seed=5, dropout=0.5), probe=False)
    torch.rand(3), np.random.rand(3)  # noqa: NPY002, the global generator is the point
    assert harness.train(TINY).state_digest == first.state_digest
    assert harness.train(TINY.replace(seed=1)).state_digest != first.state_digest


def process_state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),  # noqa: NPY002
        "store": mlflow.get_tracking_uri(),
        "active run": mlflow.active_run(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_training_leaves_the_process_as_it_was(threads: int, place: Path) -> None:
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        before = process_state()
        with torch.no_grad() if threads == 2 else torch.enable_grad():
            harness.train(TINY)
        after = process_state()
        denormal = torch.tensor([1e-40]) * 1
    finally:
        torch.set_num_threads(before_threads)
    assert after == before
    assert denormal.item() != 0


def test_mlflow_still_follows_the_environment_after_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that changes MLFLOW_TRACKING_URI after a training is heard, as it was before."""
    harness.train(TINY, probe=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///somewhere-else.db")
    assert mlflow.get_tracking_uri() == "sqlite:///somewhere-else.db"


def test_network_without_hidden_layers_has_no_health_and_no_picture_of_it(client: MlflowClient, place: Path) -> None:
    result = harness.train(RunConfig(dataset="mnist_5k", epochs=2, max_batches=4, network={"layers": []}))
    assert "plots/history.png" in paths(client, result.run_id)
    assert "plots/activations.png" not in paths(client, result.run_id)
    assert not any(key.startswith("health/") for key in client.get_run(result.run_id).data.metrics)


@pytest.mark.slow
def test_process_that_trains_has_the_environment_it_started_with(tmp_path: Path) -> None:
    code = (
        "import os; before = dict(os.environ); import harness; "
        "harness.train(harness.RunConfig(dataset='mnist_5k', epochs=1, max_batches=1)); "
        "ours = {k for k in set(before) | set(os.environ) if before.get(k) != os.environ.get(k)}; "
        "print(sorted(k for k in ours if k.startswith(('MLFLOW', 'HARNESS'))))"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


# endings


@pytest.mark.parametrize("values", [{}, {"act": "relu", "init": "kaiming"}], ids=["tanh", "relu"])
def test_diverging_run_is_a_result(values: dict[str, Any], client: MlflowClient, place: Path) -> None:
    result = harness.train(TINY.replace(lr=1e6, epochs=5, **values))
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert result.diverged is not None
    assert run.data.tags["diverged"] == f"epoch {result.diverged}"
    assert f"diverged in epoch {result.diverged}" in run.data.tags["mlflow.note.content"]
    assert result.history[-1].epoch == result.diverged
    assert {"plots/history.png", "plots/activations.png", "history.csv"} <= paths(client, result.run_id)
    losses = [row[0] for row in metrics(client, result.run_id)["test/loss"]]
    assert losses == list(range(result.diverged + 1))
    assert ALPHABET.fullmatch(run.data.tags["diverged"])


def test_run_that_breaks_in_the_middle_is_failed_with_its_error(client: MlflowClient, place: Path) -> None:
    before = {run.info.run_id for run in runs(client)}

    def breaking(record: EpochRecord, epochs: int) -> None:
        """Put a file where the run's checkpoints should go."""
        if record.epoch == 1:
            (broken,) = {run.info.run_id for run in runs(client)} - before
            folder = place / "mlruns" / "harness" / broken / "artifacts" / "checkpoints"
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            folder.write_text("in the way", encoding="utf-8")

    with pytest.raises(OSError, match="checkpoints"):
        harness.train(TINY.replace(epochs=4), report=breaking)
    (run,) = (run for run in runs(client) if run.info.run_id not in before)
    assert run.info.status == "FAILED"
    assert "checkpoints" in run.data.tags["error"]
    assert "state_digest" not in run.data.tags
    assert not set(run.data.metrics) & FINAL
    trace = Path(client.download_artifacts(run.info.run_id, "traceback.txt")).read_text(encoding="utf-8")
    assert trace.startswith("Traceback")


@pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError("by hand"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_error_of_the_caller_ends_the_run_and_reaches_the_caller(
    error: BaseException, status: str, client: MlflowClient, place: Path
) -> None:
    before = {run.info.run_id for run in runs(client)}

    def report(record: EpochRecord, epochs: int) -> None:
        raise error

    with pytest.raises(type(error)):
        harness.train(TINY, report=report)
    (run,) = (run for run in runs(client) if run.info.run_id not in before)
    assert run.info.status == status
    assert metrics(client, run.info.run_id)["test/loss"][-1][0] == 0, "what was told is not in the store"
    told = run.data.tags.get("error", "")
    assert bool(re.fullmatch("zerodivisionerror.? by hand", told.lower())) == (status == "FAILED")
    assert ("error" in run.data.tags) == (status == "FAILED")


@pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError("by hand"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_run_that_breaks_ends_though_the_store_takes_no_more_rows(
    error: BaseException, status: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, send = {run.info.run_id for run in runs(client)}, Store.send

    def picky(store: Store, run_id: str, entry: Entry, content: Path | None = None) -> None:
        if max((step for *_, step in entry.metrics), default=0):
            raise MlflowException("refused by hand")
        send(store, run_id, entry, content)

    def report(record: EpochRecord, epochs: int) -> None:
        if record.epoch == 1:
            raise error

    monkeypatch.setattr(Store, "send", picky)
    with pytest.raises(type(error)):
        harness.train(TINY, report=report)
    (run,) = (run for run in runs(client) if run.info.run_id not in before)
    assert run.info.status == status


def sent(monkeypatch: pytest.MonkeyPatch, pause: float, config: RunConfig) -> tuple[RunResult, list[set[int]]]:
    """A run, 20 ms between its epochs, and the steps of the rows of each call that brought some to the store."""
    calls, send = list[set[int]](), Store.send

    def counted(store: Store, run_id: str, entry: Entry, content: Path | None = None) -> None:
        if entry.metrics:
            calls.append({step for _, _, _, step in entry.metrics})
        send(store, run_id, entry, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "send", counted)
        patch.setattr(tracking, "PAUSE", pause)
        return harness.train(config, report=lambda record, epochs: time.sleep(0.02)), calls


def test_quick_epochs_share_a_call_to_the_store_and_slow_ones_have_their_own(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY.replace(epochs=4)
    quick, together = sent(monkeypatch, 3600.0, config)
    slow, apart = sent(monkeypatch, 0.01, config)
    assert together == [{0}, {1, 2, 3, 4}]
    assert apart == [{0}, {1}, {2}, {3}, {4}, {4}]  # the last with the final metrics
    found, wanted = ({k: v for k, v in metrics(client, r.run_id).items() if k[:5] != "time/"} for r in (quick, slow))
    assert found == wanted


def test_rows_that_shared_a_call_have_the_times_of_their_epochs(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = sent(monkeypatch, 3600.0, TINY.replace(epochs=4))
    times = [row.timestamp for row in client.get_metric_history(result.run_id, "test/loss")]
    assert all(later - earlier >= 20 for earlier, later in pairwise(times)), times


def test_more_rows_than_mlflow_takes_at_once_go_by_several_calls(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAUSE", 3600.0)
    store = Store()
    log = RunLog(store, store.create("many rows", "many"))
    for epoch in range(600):
        log.epoch(EpochRecord(epoch, {"train/loss": epoch / 7, "test/loss": epoch / 3}))
    log.finish("KILLED")
    wanted = {part: [(epoch, epoch / by) for epoch in range(600)] for part, by in (("train/loss", 7), ("test/loss", 3))}
    assert metrics(client, log.id) == wanted


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "batch larger than the data": ({"batch_size": 4001}, "batch_size=4001 is not allowed; allowed: at most 4000"),
    "last batch of one": ({"batch_size": 3999, "norm": "batchnorm", "max_batches": 0}, "last batch of one"),
    "nothing held out": ({"validation": 1e-9}, "validation=1e-09"),
    "everything held out": ({"validation": 0.99999}, "validation=0.99999"),
    "network for other images": (
        {"network": {"input_size": 100, "layers": []}, "hidden_dim": 128, "max_batches": 0},
        "input_size=100 is not allowed; allowed: 784",
    ),
    "network file that is not there": ({"network": "nowhere.json", "hidden_dim": 128}, "no such file"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_config_creates_no_store(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    values, message = BAD[what]
    with pytest.raises(InputError) as caught:
        harness.train(TINY.replace(**values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_store_that_is_no_store_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.db").write_text("this is no database, though it is long enough to look like one" * 20, encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    for uri in (
        f"sqlite:///{tmp_path}/text.db",
        f"sqlite:///{tmp_path}/file/mlflow.db",
        "nonsense://x",
        "postgresql://127.0.0.1:1/x",
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(StoreError) as caught:
            harness.train(TINY)
        assert uri in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["with space", "ümläut", "hash#tag"])
def test_store_may_lie_in_a_folder_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = harness.train(TINY, probe=False)
    assert sorted(os.listdir(tmp_path)) == [name]
    assert {"mlflow.db", "mlruns"} <= set(os.listdir(tmp_path / name))
    assert (tmp_path / name / "mlruns" / "harness" / result.run_id / "artifacts" / "config.json").is_file()
    assert harness.load_model(result.run_id)


def test_run_that_was_deleted_is_not_resumed(client: MlflowClient) -> None:
    run_id = harness.train(RunConfig(dataset="mnist_5k", epochs=1, max_batches=1, seed=77), say=lambda line: None).run_id
    client.set_terminated(run_id, "KILLED")
    client.delete_run(run_id)
    with pytest.raises(InputError, match=f"run {run_id} was deleted; restore it: mlflow runs restore --run-id {run_id}"):
        launch.resume(run_id, say=lambda line: None)
