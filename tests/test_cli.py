"""The command line: quick help, one line for every bad input, exit codes, plain lines in a pipe and a bar on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forks
import pytest
from mlflow import MlflowClient
from test_search_cli import TINY as SEARCH

from harness import cli
from harness.config import FIELDS, RunConfig
from harness.errors import InputError
from harness.interrupts import POLITE

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--dataset", "mnist_5k", "--epochs", "2", "--max-batches", "3", "--hidden-dim", "6")
DATA = ("--dataset", "mnist_5k")


def environment(**env: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "110", **env}


def start(folder: Path, *arguments: str, kind: type[subprocess.Popen[str]] = forks.Fork, **env: str) -> subprocess.Popen[str]:
    return kind(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 150) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def harness_says(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return finish(start(folder, *arguments, **env))


def fresh_harness_says(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """With imports of its own."""
    return finish(start(folder, *arguments, kind=subprocess.Popen, **env))


def assert_bad_input(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one line on stderr that names what was given and what is allowed, nothing else."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("harness: error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


# help


def processor_seconds() -> float:
    """What ended children have used: on a machine that does nothing else, the time that a person waits."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", [(), ("train",), ("doctor",)], ids=["harness", "train", "doctor"])
def test_help_answers_in_half_a_second(command: tuple[str, ...], tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):
        began = processor_seconds()
        done = fresh_harness_says(tmp_path, *command, "--help")
        seconds.append(processor_seconds() - began)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: harness")
        assert done.stderr == ""
    assert statistics.median(seconds) < 0.5
    assert not list(tmp_path.iterdir())


def test_help_of_train_names_every_parameter_with_its_default_and_levels(tmp_path: Path) -> None:
    text = " ".join(fresh_harness_says(tmp_path, "train", "-h").stdout.split())
    for name, default in RunConfig().text().items():
        assert re.search(rf"--{name.replace('_', '-')} ([A-Z]+ )?{re.escape(FIELDS[name].description or '')}", text), name
        assert f"[{default}]" in text, name
    assert "none, batchnorm, layernorm" in text


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--act", "reluu"], ["train", "--lr", "x"]])
def test_nothing_heavy_is_loaded_before_the_input_is_checked(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import json, sys\nfrom harness.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'numpy', 'matplotlib', 'rich.progress'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_version_is_told_whether_installed_or_not(tmp_path: Path) -> None:
    done = fresh_harness_says(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


# bad input that is found before anything is loaded

BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "level": (("--act", "reluu"), ("act='reluu'", "allowed: tanh, relu", "nearest: relu")),
    "norm": (("--norm", "layernrm"), ("norm='layernrm'", "nearest: layernorm")),
    "case": (("--optimizer", "Adam"), ("optimizer='Adam'", "nearest: adam")),
    "lr text": (("--lr", "abc"), ("lr='abc'", "a finite number above 0")),
    "lr negative": (("--lr", "-1"), ("lr='-1'", "a finite number above 0")),
    "lr zero": (("--lr", "0"), ("lr='0'",)),
    "lr nan": (("--lr", "nan"), ("lr='nan'", "a finite number above 0")),
    "lr inf": (("--lr=inf",), ("lr='inf'",)),
    "lr empty": (("--lr", ""), ("lr=''",)),
    "epochs 0": (("--epochs", "0"), ("epochs='0'", "a whole number from 1")),
    "epochs 1.5": (("--epochs", "1.5"), ("epochs='1.5'",)),
    "epochs true": (("--epochs", "true"), ("epochs='true'",)),
    "seed -1": (("--seed", "-1"), ("seed='-1'", "a whole number from 0")),
    "seed huge": (("--seed", "9" * 5000), ("seed='999", "a whole number from 0")),
    "dropout 1": (("--dropout", "1"), ("dropout='1'", "up to, not including, 1")),
    "validation 1": (("--validation", "1"), ("validation='1'", "up to, not including, 1")),
    "weight decay": (("--weight-decay", "-0.1"), ("weight_decay='-0.1'",)),
    "batch size": (("--batch-size", "0"), ("batch_size='0'",)),
    "max batches": (("--max-batches", "-3"), ("max_batches='-3'",)),
    "dataset": (("--dataset", "mnist5k"), ("dataset='mnist5k'", "nearest: mnist_5k")),
    "device": (("--device", "gpu"), ("device='gpu'", "allowed: cpu, cuda, auto")),
    "several lines": (("--act", "relu\nsecond"), ("act=",)),
    "unknown parameter": (("--droput", "0.1"), ("'--droput'", "nearest: --dropout")),
    "unknown with underscore": (("--hiddendim=3",), ("nearest: --hidden-dim",)),
    "no value": (("--lr",), ("--lr",)),
    "extra word": (("relu",), ("relu",)),
    "missing network": (("--network", "nowhere.json"), ("nowhere.json", "no such file", "allowed: mlp")),
    "folder as network": (("--network", "."), ("network=",)),
    "home of nobody": (("--network", "~no-such-user/net.json"), ("~no-such-user",)),
    "malformed network": (("--network", "{broken.json"), ("network", "not JSON")),
    "unknown layer": (
        ("--network", '{"layers": [{"type": " linear", "size": 3}]}'),
        ("layers[0]", "' linear'", "nearest: linear"),
    ),
    "layers and act": (("--network", '{"layers": []}', "--act", "relu"), ("act=relu", "leave it out")),
    "resume with more": (("--resume", "0" * 32, "--lr", "0.1"), ("--lr", "--resume", "keeps its own config")),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[subprocess.CompletedProcess[str], list[str]]]:
    """What each bad input gave, and what it left in its folder; two processes at a time."""
    found = {}
    names = list(BAD)
    for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
        folders = [tmp_path_factory.mktemp("bad") for _ in pair]
        started = [
            start(folder, "train", *BAD[name][0], kind=subprocess.Popen) for name, folder in zip(pair, folders, strict=True)
        ]
        for name, folder, process in zip(pair, folders, started, strict=True):
            found[name] = (finish(process, 60), os.listdir(folder))
    return found


@pytest.mark.slow
def test_user_without_a_home_is_told_to_set_one(tmp_path: Path) -> None:
    """As in a container that runs as any number of a user."""
    homeless = {key: value for key, value in environment().items() if key not in ("HOME", "USER", "LOGNAME")}

    def harness_told(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--user", "--map-user=4711", sys.executable, "-m", "harness", *arguments]
        return subprocess.run(command, cwd=tmp_path, env={**homeless, **env}, capture_output=True, text=True, timeout=150)

    run = ["train", "--epochs", "1", "--max-batches", "1", "--dataset", "mnist_5k"]
    assert_bad_input(harness_told(*run), "HOME is not set", "set HOME to a folder")
    assert not list(tmp_path.iterdir())
    assert harness_told("--help").returncode == 0
    assert "bad  environment HOME is not set" in harness_told("doctor").stdout
    assert harness_told(*run, HOME=str(tmp_path)).returncode == 0


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, refused: dict[str, tuple[subprocess.CompletedProcess[str], list[str]]]
) -> None:
    done, left = refused[name]
    assert_bad_input(done, *BAD[name][1])
    assert left == []


def test_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    assert_bad_input(harness_says(tmp_path, "trian"), "trian", "train")


def test_no_command_shows_the_help(tmp_path: Path) -> None:
    done = harness_says(tmp_path)
    assert done.returncode == 2
    assert "Usage: harness" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_malformed_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text('{"layers": [\n  {"type": "linear" "size": 3}]}', encoding="utf-8")
    assert_bad_input(harness_says(tmp_path, "train", "--network", "net.json"), "net.json", "line 2")
    assert os.listdir(tmp_path) == ["net.json"]


# bad input that needs the data or the store to be known

SMALL_NET = '{"input_size": 100, "layers": [{"type": "linear", "size": 3}]}'
LATE: dict[str, tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    "batch larger than the data": (("--batch-size", "4001"), {}, ("batch_size=4001", "at most 4000")),
    "last batch of one": (("--batch-size", "3999", "--norm", "batchnorm"), {}, ("batch_size=3999", "last batch of one")),
    "network of another size": (("--network", SMALL_NET), {}, ("input_size=100", "784")),
    "store below a file": ((), {"MLFLOW_TRACKING_URI": "sqlite:///file/mlflow.db"}, ("sqlite:///", "file/mlflow.db")),
    "store that is a folder": ((), {"MLFLOW_TRACKING_URI": "sqlite:///folder"}, ("sqlite:///", "folder")),
    "store in memory": ((), {"MLFLOW_TRACKING_URI": "sqlite://"}, ("'sqlite://' is not allowed", "sqlite:///FILE")),
    "store in memory, by name": ((), {"MLFLOW_TRACKING_URI": "sqlite:///:memory:"}, (":memory:", "sqlite:///FILE")),
    "store by a driver's name": ((), {"MLFLOW_TRACKING_URI": "sqlite+pysqlite:///a.db"}, ("pysqlite", "sqlite:///FILE")),
    "port that is no number": ((), {"MLFLOW_TRACKING_URI": "postgresql://u:p@host:port/db"}, ("cannot be opened",)),
    "address that is none": ((), {"MLFLOW_TRACKING_URI": "http://[::1"}, ("http://[::1",)),
    "dead server": ((), {"MLFLOW_TRACKING_URI": "http://127.0.0.1:{port}"}, ("http://127.0.0.1",)),
    "run that is not there": ((), {"MLFLOW_RUN_ID": "0123456789abcdef0123456789abcdef"}, ("0123456789abcdef",)),
    "run to resume is not there": (("--resume", "f" * 32), {}, ("f" * 32, "MLFLOW_TRACKING_URI")),
}
MAY_LEAVE = {"store below a file", "store that is a folder"}


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[subprocess.CompletedProcess[str], list[str], float]]:
    """What each gave, what it left in its folder, and after how many seconds; three processes at a time."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

    def one(name: str) -> tuple[subprocess.CompletedProcess[str], list[str], float]:
        folder, began = tmp_path_factory.mktemp("late"), time.monotonic()
        (folder / "file").write_text("", encoding="utf-8")
        (folder / "folder").mkdir()
        arguments, env, _ = LATE[name]
        data = () if "--resume" in arguments else DATA
        env = {key: value.format(port=port) for key, value in env.items()}
        done = finish(start(folder, "train", *data, *arguments, **env), 60)
        return done, sorted(set(os.listdir(folder)) - {"file", "folder"}), time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(LATE, pool.map(one, LATE), strict=True))


@pytest.mark.parametrize("name", LATE)
def test_bad_input_that_is_found_late_is_still_one_line(
    name: str, late: dict[str, tuple[subprocess.CompletedProcess[str], list[str], float]]
) -> None:
    done, left, seconds = late[name]
    assert_bad_input(done, *LATE[name][2])
    assert seconds < 60
    if name not in MAY_LEAVE:
        assert left == []


def test_dead_server_is_given_up_within_thirty_seconds(
    late: dict[str, tuple[subprocess.CompletedProcess[str], list[str], float]],
) -> None:
    starting = min(seconds for _, _, seconds in late.values())  # a new process, which takes as long as others let it
    assert late["dead server"][2] - starting < 30
    assert late["dead server"][1] == []


def test_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = harness_says(tmp_path, "train", *DATA, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert_bad_input(done, "device='cuda'", "allowed: cpu, auto")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_a_value_error_for_programs() -> None:
    with pytest.raises(InputError, match="nearest: relu"):
        RunConfig(act="reluu")


# runs


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str, subprocess.CompletedProcess[str]]:
    """A run as `mlflow run` begins it: raw params logged, its id exported; then the command line, piped."""
    folder = tmp_path_factory.mktemp("adopted")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("theirs", f"file://{folder}/mlruns")
    run_id = client.create_run(experiment, run_name="capable-crow-1").info.run_id
    for key, value in {"lr": "1e-2", "hidden_dim": "6", "act": "relu"}.items():
        client.log_param(run_id, key, value)
    env = {"MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    options = ("--lr", "1e-2", "--hidden_dim", "6", "--act=relu", "--max_batches", "3", "--epochs", "2")
    return client, run_id, harness_says(folder, "train", *DATA, *options, **env)


def test_run_that_mlflow_began_is_the_run(adopted: tuple[MlflowClient, str, subprocess.CompletedProcess[str]]) -> None:
    client, run_id, done = adopted
    assert (done.returncode, done.stderr) == (0, "")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.run_id for run in runs] == [run_id]
    assert runs[0].info.status == "FINISHED"
    assert runs[0].info.run_name == runs[0].data.tags["cell"]
    assert client.get_experiment(runs[0].info.experiment_id).name == "theirs"


def test_raw_params_stay_and_the_truth_is_typed(adopted: tuple[MlflowClient, str, subprocess.CompletedProcess[str]]) -> None:
    client, run_id, _ = adopted
    params = client.get_run(run_id).data.params
    assert params["lr"] == "1e-2"
    assert set(params) == set(FIELDS)
    config = json.loads(Path(client.download_artifacts(run_id, "config.json")).read_text(encoding="utf-8"))
    assert (config["lr"], config["hidden_dim"], config["act"]) == (0.01, 6, "relu")
    assert RunConfig(**config) == RunConfig(**params)


def test_piped_output_is_plain_lines(adopted: tuple[MlflowClient, str, subprocess.CompletedProcess[str]]) -> None:
    _, run_id, done = adopted
    assert not set(done.stdout) & {"\x1b", "\r", "\b"}
    lines = done.stdout.splitlines()
    number = r" +\d+\.\d+ +"
    pattern = rf"epoch \d/2(  train loss{number}acc{number})? +test loss{number}acc +[01]\.\d+(  \d+ s left)?"
    told = [line for line in lines if line.startswith("epoch")]
    assert [int(line[6]) for line in told] == [0, 1, 2]
    assert all(re.fullmatch(pattern, line) for line in told), told
    assert lines[0].startswith(f"run      {run_id}  "), "the id comes first, for whoever has to kill and resume"
    assert [line for line in lines if line.startswith(f"finished {run_id}  ")]
    assert any(line.endswith(f"/runs/{run_id}") for line in lines)


def test_run_that_was_trained_is_not_trained_over(
    adopted: tuple[MlflowClient, str, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    client, run_id, _ = adopted
    before = client.get_run(run_id).to_dictionary()
    env = {"MLFLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": client.tracking_uri}
    assert_bad_input(harness_says(tmp_path, "train", *TINY, **env), run_id, "already holds a")
    assert client.get_run(run_id).to_dictionary() == before


@pytest.mark.slow
def test_terminal_shows_a_bar_and_ends_with_the_run(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = forks.Fork(
        [sys.executable, "-m", "harness", "train", *TINY],
        cwd=tmp_path,
        env=environment(TERM="xterm-256color"),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output, deadline = b"", time.monotonic() + 150
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            output += part
        code = process.wait(timeout=30)
    finally:
        process.kill()
        os.close(ours)
    text = output.decode()
    assert code == 0, text
    assert "\x1b[" in text
    assert "━" in text
    assert "2/2" in text
    shown = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).strip() for line in text.replace("\r", "\n").split("\n")]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    end = [line for line in shown if line][-6:]
    assert end[0].startswith(f"finished {run.info.run_id}  ")
    assert f"/runs/{run.info.run_id}" in end[4]
    assert [line for line in shown if re.match(r"epoch 1/2  train loss", line)]


@pytest.mark.slow
def test_reader_that_leaves_does_not_break_the_run(tmp_path: Path) -> None:
    """`harness train | head -1` is no failure of the training."""
    process = start(tmp_path, "train", *TINY)
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    try:
        process.wait(timeout=150)
    finally:
        process.kill()
        assert process.stderr
        process.stderr.close()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("size", [60_000, 250_000, 400_000])
def test_kill_while_a_fresh_store_is_being_made_leaves_one_that_can_be_used(size: int, tmp_path: Path) -> None:
    """MLflow makes its tables in a second or two; whoever loses power in it can start again."""
    process, deadline = start(tmp_path, "train", *TINY), time.monotonic() + 60
    while not any(half.stat().st_size > size for half in tmp_path.glob(".mlflow.db.new-????????")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert finish(process).returncode == -9
    assert not (tmp_path / "mlflow.db").exists(), "it was made already"
    again = harness_says(tmp_path, "train", *TINY)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_run_needs_no_git(tmp_path: Path) -> None:
    """The commit is a fact of the record, not a condition of training."""
    done = fresh_harness_says(tmp_path, "train", *TINY, PATH=str(tmp_path / "nothing-here"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_every_command_makes_its_own_imports_and_warns_of_nothing(tmp_path: Path) -> None:
    """Most tests of commands fork a process that made the imports of all: what one forgets, or says meanwhile, they miss."""
    (tmp_path / "tiny.toml").write_text(SEARCH)
    said = dict[str, str]()

    def succeeds(command: str, *arguments: str) -> None:
        done = fresh_harness_says(tmp_path, command, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), command
        said[command] = done.stdout

    succeeds("train", *TINY)
    succeeds("verify", re.findall("[0-9a-f]{32}", said["train"])[0])
    succeeds("study", "matrix", "--seeds", "0,1", *TINY)
    for command in ("status", "results", "report"):
        succeeds(command, "matrix")
    succeeds("search", "tiny.toml")
    succeeds("doctor")
    assert set(said) == set(cli.cli.commands)
    assert all(said.values())


@pytest.mark.parametrize("name", ["question?mark", "per%20cent"])
def test_folder_whose_name_means_something_in_a_uri_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert_bad_input(harness_says(tmp_path / name, "train", *DATA), "sqlite store cannot lie in a folder with")
    assert [path.name for path in tmp_path.rglob("*")] == [name]


def test_an_interrupt_that_an_import_makes_another_error_of_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **named: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("a half imported module") from None

    before = {polite: signal.signal(polite, signal.default_int_handler) for polite in POLITE}
    monkeypatch.setattr(cli, "cli", broken)
    try:
        with pytest.raises(SystemExit) as left:
            cli.main([])
    finally:
        for polite, handler in before.items():
            signal.signal(polite, handler)
    assert left.value.code == 130


def test_a_sign_that_a_terminal_cannot_show_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := io.TextIOWrapper(content := io.BytesIO(), encoding="ascii"))
    cli._lead_nowhere()
    print("±0.02", flush=True)
    monkeypatch.undo()
    assert content.getvalue() == b"\\xb10.02\n"
    assert not terminal.closed
