"""The only module that speaks to MLflow: it opens the store, writes a run and finds its files again."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.exc import SQLAlchemyError

from harness import chart, outage
from harness.errors import HarnessError, InputError, MissingArtifact, StoreAway, StoreError, TakenOver, WriteError, short
from harness.interrupts import waiting
from harness.journal import Entry, Journal
from harness.results import EpochRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

UNFINISHED = ("RUNNING", "SCHEDULED")
LOCKS = Path("/proc/locks")  # "1: FLOCK ADVISORY WRITE 4711 08:02:1234 0 EOF", on Linux
Got = TypeVar("Got")


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` of the working directory; the path of a sqlite store made absolute.

    Raises StoreError for a path that would mean something else in a URI.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        return uri
    place = str(Path(path).resolve())  # one store has one name, and so one lock
    if found := sorted(set("?%") & set(place)):
        raise StoreError(f"store {place}: a sqlite store cannot lie in a folder with {found[0]} in its name; use another")
    return f"sqlite:///{place}"


def check_file(uri: str) -> None:
    """Look at the file of a sqlite store without MLflow, which would fill an empty one and migrate an old one.

    Raises StoreError for one that is damaged, is no store, or is not at the schema that this MLflow wants.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision  # half a second that only this needs to wait for

    place = Path(uri.removeprefix("sqlite:///"))
    try:
        with closing(sqlite3.connect(f"{place.as_uri()}?mode=rw", uri=True, timeout=10)) as file:
            whole = file.execute("PRAGMA quick_check(1)").fetchone()[0]
            tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
            rows = file.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in tables else []
    except sqlite3.Error as error:
        remedy = "end what writes it" if "locked" in str(error) else "restore a copy of it, or name another"
        raise StoreError(f"store {uri} cannot be read: {_line(error)}; {remedy}") from None
    if whole != "ok":
        raise StoreError(f"store {uri} is damaged: {whole}; restore a copy of it, or name another")
    found, wanted = (rows[0][0] if rows else "none"), _get_latest_schema_revision()
    if found != wanted:
        remedy = f"copy it, then: mlflow db upgrade {uri}" if rows else "name another"
        raise StoreError(f"store {uri} has schema {found}, mlflow {version('mlflow')} wants {wanted}; {remedy}")


class Store:
    """An open tracking store. Raises StoreError, in one line, when it cannot be reached or written.

    One that stops answering later raises StoreAway: the first call that meets it within 20 seconds, others at once, until
    it answers again. `say` hears of it.
    """

    def __init__(self, uri: str | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        self.uri = uri or store_uri()
        self.say = say
        self.experiments: dict[str, str] = {}  # name -> id, of those asked for
        self.journals: dict[str, Journal] = {}  # run id -> what waits of it, of runs that this process holds
        self.asked_last: float | None = None  # when it did not answer; None while it does
        self.given_up = False  # whether somebody waited for the end of this outage in vain
        for name in ("mlflow", "alembic"):  # they tell of every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for every locked file
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for every second try
        with _refused(self.uri), self._alone(), told(outage.IMPATIENT):
            self._create()
            self.client = MlflowClient(self.uri)
            self.client.search_experiments(max_results=1)

    @classmethod
    def there(cls, uri: str | None = None) -> Store | None:
        """The store; None where it would be a sqlite file that does not exist yet: looking creates nothing."""
        path = (uri := uri or store_uri()).removeprefix("sqlite:///")
        return None if path != uri and not Path(path).exists() else cls(uri)

    @classmethod
    def holding(cls, run_id: str) -> Store:
        """The store, where it may have a run. Raises InputError where it would be a sqlite file that does not exist yet."""
        if (store := cls.there()) is None:
            raise _unknown(run_id, f"{store_uri()}, which does not exist")
        return store

    @property
    def folder(self) -> Path | None:
        """Where a sqlite store lies; None for a server."""
        path = self.uri.removeprefix("sqlite:///")
        return None if path == self.uri else Path(path).parent

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: a fresh sqlite store that three open at once is destroyed."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.uri.removeprefix('sqlite:///')}.lock", timeout=60):
            yield

    def _create(self) -> None:
        """Make a sqlite store that is not there, beside its place: one that is half made can never be used again.

        Raises at once where it cannot be written; MLflow would try for two minutes.
        """
        if self.folder is None:
            return
        path = Path(self.uri.removeprefix("sqlite:///"))
        for left in self.folder.glob(f".{path.name}.new*"):  # by a process that was killed
            left.unlink()
        if not path.exists():
            (new := path.with_name(f".{path.name}.new")).touch()
            MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
            new.replace(path)
        with closing(sqlite3.connect(path, timeout=30)) as file:
            file.execute("BEGIN IMMEDIATE")

    def experiment(self, name: str) -> str:
        """The id of an experiment, created if need be; its artifacts lie beside a sqlite store, wherever a run starts."""
        if name in self.experiments:
            return self.experiments[name]
        with _refused(self.uri), self._alone(), self.asked():
            place = None if self.folder is None else (self.folder / "mlruns" / name).as_uri()
            if self.client.get_experiment_by_name(name) is None:
                with suppress(MlflowException):  # another process may be faster
                    self.client.create_experiment(name, artifact_location=place)
            if (found := self.client.get_experiment_by_name(name)) is None:
                raise StoreError(f"store {self.uri}: experiment {name} could be neither found nor created")
            if found.lifecycle_stage != "active":
                restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
                raise StoreError(f"store {self.uri}: experiment {name} was deleted; restore it: {restore}")
            return self.experiments.setdefault(name, str(found.experiment_id))

    def create(self, experiment: str, name: str, command: str = "harness train", tags: Mapping[str, object] = {}) -> RunLog:
        """A new run, RUNNING, in an experiment."""
        with _refused(self.uri), self.asked():
            said = {"mlflow.user": _user(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
            said |= {key: str(value) for key, value in tags.items()}
            return RunLog(self, self.client.create_run(self.experiment(experiment), run_name=name, tags=said))

    def runs(self, experiment: str, **tags: str) -> list[Run]:
        """The runs of an experiment that have these tags, the newest first; deleted ones are none."""
        with _refused(self.uri), self.asked():
            if (found := self.client.get_experiment_by_name(experiment)) is None:
                return []
            search = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
            return self._search([found.experiment_id], search)

    def unfinished(self) -> list[Run]:
        """The runs of all experiments that have not ended, whoever began them."""
        with _refused(self.uri):
            experiments = [found.experiment_id for found in self.client.search_experiments(max_results=10_000)]
            return [run for state in UNFINISHED for run in self._search(experiments, f"attributes.status = '{state}'")]

    def _search(self, experiments: Sequence[str], search: str) -> list[Run]:
        runs, token = list[Run](), None
        while True:
            page = self.client.search_runs(list(experiments), search, max_results=1000, page_token=token)
            runs += page
            if not (token := page.token):
                return runs

    def latest(self) -> RunLog:
        """The run that was begun last of those that finished. Raises InputError where none has."""
        with _refused(self.uri):
            experiments = [found.experiment_id for found in self.client.search_experiments()]
            search = "attributes.status = 'FINISHED' and tags.config_digest LIKE '%'"
            runs = self.client.search_runs(experiments, search, max_results=1, order_by=["attributes.start_time DESC"])
        if not runs:
            raise InputError(f"the store {self.uri} has no finished run")
        return RunLog(self, runs[0])

    def end(self, run_id: str, status: str) -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        with self.asked():
            self.client.set_terminated(run_id, status)

    def reap(self, run_id: str, why: str) -> bool:
        """End a run that has no process: KILLED, as its process was, with the reason in the tag `error`.

        False where one has taken it up meanwhile, or it has ended.
        """
        with suppress(Timeout), self.lock(run_id):
            if self.get(run_id).info.status in UNFINISHED:
                self.client.set_tag(run_id, "error", why)
                self.end(run_id, "KILLED")
                return True
        return False

    def update(self, run_id: str, *, status: str | None = None, name: str | None = None) -> None:
        """Change the state of a run that goes on, or its name."""
        with self.asked():
            self.client.update_run(run_id, status, name)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Bound the calls inside. Raises StoreAway where the store does not answer, and at once while it is known not to."""
        if not self.back():
            raise StoreAway(f"store {self.uri} does not answer")
        with told({**outage.IMPATIENT, **QUIET}), waiting() if self.folder else nullcontext():
            try:
                yield
            except HarnessError:
                raise
            except Exception as error:
                if not outage.is_outage(error):
                    raise
                self.asked_last = time.monotonic()
                raise StoreAway(f"store {self.uri} does not answer: {_line(error)}") from error

    def back(self, every: float = outage.EVERY) -> bool:
        """Whether the store answers, as far as is known; in an outage it is asked shortly, after so many seconds again."""
        if self.asked_last is None:
            return True
        if time.monotonic() - self.asked_last < every:
            return False
        try:
            self._asked_shortly()
        except Exception as error:
            if outage.is_outage(error):
                self.asked_last = time.monotonic()
                return False
        self.asked_last, self.given_up = None, False
        return True

    def _asked_shortly(self) -> None:
        if self.folder is None:
            with told(outage.SHORTLY):
                self.client.search_experiments(max_results=1)
            return
        file = f"file:{quote(self.uri.removeprefix('sqlite:///'))}?mode=rw"
        with closing(sqlite3.connect(file, uri=True, timeout=outage.SHORT)) as there:
            there.execute("BEGIN IMMEDIATE")

    def insist(self, call: Callable[[], Got]) -> Got:
        """Ask for what cannot be done without: again each second while the store does not answer.

        Raises StoreAway after a minute; after that at once, as long as the outage lasts.
        """
        end = time.monotonic() + (0 if self.given_up else outage.WAIT)
        while True:
            try:
                self.back(every=1)
                with self.asked():
                    return call()
            except StoreAway:
                if time.monotonic() >= end:
                    self.given_up = True
                    raise
            time.sleep(1)

    def journal_folder(self, run_id: str) -> Path:
        """Where a run keeps what this store has not got: beside a sqlite store, so that whoever shares the disk finds it;
        for a server in the user's cache on this machine.
        """
        cache = Path.home() / ".cache" / "harness" / "journal"
        return (self.folder / "mlruns" / ".journal" if self.folder else cache) / run_id

    def share(self, experiment_id: str, name: str, view: str) -> None:
        """Keep a view of an experiment under a name, for `mlflow ui`."""
        with self.asked():
            self.client.set_experiment_tag(experiment_id, chart.TAG + name, view)

    def page(self, experiment_id: str, run_id: str) -> str:
        """Where `mlflow ui` shows a run."""
        return f"{chart.UI}/#/experiments/{experiment_id}/runs/{run_id}"

    def _lock_file(self, name: str) -> Path:
        """Beside a sqlite store, so that whoever shares the disk shares the lock; else in the folder for temporary files."""
        folder = self.folder and self.folder / "mlruns" / ".locks"
        return (folder or Path(tempfile.gettempdir())) / f"harness-{name}.lock"

    @contextmanager
    def lock(self, name: str, seconds: float = 0) -> Iterator[None]:
        """Hold a name among the processes of this machine. Raises Timeout when another holds it for longer than `seconds`."""
        place = self._lock_file(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place)
        lock.acquire(timeout=seconds)
        try:
            yield
        finally:
            lock.release()  # the file stays: to remove it would let two others hold it at once

    def study_lock(self, study: str) -> str:
        """The name that a launch of a study holds."""
        return f"study-{study}-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}"

    def ever_held(self, name: str) -> bool:
        """Whether a process of this machine holds a name, or has held it."""
        return self._lock_file(name).exists()

    def held(self, name: str) -> bool:
        """Whether a process of this machine holds a name."""
        if not self.ever_held(name):
            return False  # and looking makes none
        try:
            with self.lock(name, 0.1):  # another process may be looking, too
                return False
        except Timeout:
            return True

    def holder(self, name: str) -> str:
        """Who holds a name, for a person who would wake or end it: a process that is stopped holds what it held."""
        with suppress(OSError):  # where the kernel does not tell
            inode = self._lock_file(name).stat().st_ino
            for _, kind, _, _, process, place, *_ in map(str.split, LOCKS.read_text(encoding="ascii").splitlines()):
                if kind == "FLOCK" and place.endswith(f":{inode}") and int(process) > 0:  # not in another container
                    return f"process {process}"
        return "another process"

    def open(self, run_id: str) -> RunLog:
        """A run that is there. Raises InputError when the store has none."""
        return RunLog(self, self.get(run_id))

    def get(self, run_id: str) -> Run:
        """A run by its id. Raises InputError when the store has none."""
        try:
            with self.asked():
                return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise StoreError(f"store {self.uri}: {_line(error)}") from None
            raise _unknown(run_id, self.uri) from None


@dataclass
class RunLog:
    """Writes one run. Metric rows that the store has already are not written twice."""

    store: Store
    run: Run
    logged: set[tuple[str, int]] = field(default_factory=set)  # (key, step)

    @property
    def id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def attempt(self) -> int:
        """How many times it was begun or taken up again."""
        return int(self.run.data.tags.get("attempt", "1"))

    @property
    def begun(self) -> bool:
        """Whether it has all that a resume reads."""
        return "config_digest" in self.run.data.tags

    def adopt(self, name: str) -> None:
        """Take over a run that `mlflow run` has begun. Raises InputError when it already holds one."""
        self.run = self.store.get(self.id)
        self.check_unused()
        self.store.update(self.id, name=name)

    def check_unused(self) -> None:
        """Raise InputError for a run that is not one which `mlflow run` has just begun."""
        if self.begun or self.run.info.status not in UNFINISHED:
            raise InputError(f"MLFLOW_RUN_ID={self.id} already holds a run; unset it to start another")

    def copy(self, other: RunLog, artifacts: Sequence[str]) -> None:
        """Take over the metrics, but those it has, and small files of another run."""
        client = self.store.client
        self.resume()
        with self.store.asked():
            found = [row for key in other.run.data.metrics for row in client.get_metric_history(other.id, key)]
            rows = [row for row in found if (row.key, row.step) not in self.logged]
            for start in range(0, len(rows), 1000):
                client.log_batch(self.id, [Metric(r.key, r.value, r.timestamp, r.step) for r in rows[start : start + 1000]])
        with tempfile.TemporaryDirectory() as folder:
            for artifact in artifacts:
                self.file(artifact, partial(shutil.copyfile, other.fetch(artifact, folder)))

    def check_unfinished(self) -> None:
        """Raise InputError when there is nothing to go on with."""
        if self.run.info.status == "FINISHED":
            raise InputError(f"run {self.id} is FINISHED; there is nothing to resume")
        if not self.begun:
            raise InputError(f"run {self.id} is no harness run that had begun; start it afresh")

    def resume(self) -> None:
        """Make the run RUNNING again, without the error that it may have failed with, and learn which rows it has."""
        attempt = self.attempt + (self.run.info.status != "SCHEDULED")
        self.drop("traceback.txt")
        self.store.insist(partial(self._resume, attempt))
        self.run.data.tags["attempt"] = str(attempt)

    def _resume(self, attempt: int) -> None:
        client = self.store.client
        if "error" in self.store.get(self.id).data.tags:
            client.delete_tag(self.id, "error")
        rows = [row for key in self.run.data.metrics for row in client.get_metric_history(self.id, key)]
        self.logged = {(row.key, row.step) for row in rows}
        client.update_run(self.id, status="RUNNING")
        client.set_tag(self.id, "attempt", str(attempt))

    def check_mine(self) -> None:
        """Raise TakenOver when another process has resumed the run since: a lock beside a sqlite store forbids that, but
        processes on two machines that share a server have no lock in common.
        """
        if self.store.folder is not None:
            return
        with suppress(StoreAway):  # then nobody else can have taken it up
            if (now := self.store.open(self.id).attempt) != self.attempt:
                raise TakenOver(f"run {self.id} was taken up by another process, as attempt {now}; this one leaves it alone")

    def forget_error(self) -> None:
        """Take away the error that an earlier attempt ended with."""
        if "error" in self.run.data.tags:
            self.store.client.delete_tag(self.id, "error")

    def points(self, metric: str) -> dict[int, float]:
        """A metric of the run by its step."""
        rows = self.store.insist(lambda: self.store.client.get_metric_history(self.id, metric))
        return {row.step: row.value for row in rows}

    def fetch(self, artifact: str, into: str) -> Path:
        """A local copy of one file of the run. Raises InputError when it has no such file."""
        if (root := _local(self.run)) is not None and (root / artifact).is_file():
            return root / artifact
        folder = str(Path(artifact).parent).removeprefix(".")
        with _refused(self.store.uri), self.store.asked():
            if artifact in [file.path for file in self.store.client.list_artifacts(self.id, folder or None) if not file.is_dir]:
                return Path(self.store.client.download_artifacts(self.id, artifact, into))
        raise MissingArtifact(f"run {self.id} has no artifact {artifact}")

    def params(self, params: Mapping[str, str]) -> None:
        """Log params that are absent: `mlflow run` has logged its own spelling, and params cannot change."""
        absent = [Param(key, value[:6000]) for key, value in params.items() if key not in self.run.data.params]
        self._insist(partial(self.store.client.log_batch, self.id, params=absent))

    def tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, as text."""
        self._write(Entry(attempt=self.attempt, tags={key: str(value) for key, value in tags.items()}))
        self.run.data.tags.update({key: str(value) for key, value in tags.items()})

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of one step in one call."""
        now = int(time.time() * 1000)
        rows = [(key, float(value), now, step) for key, value in metrics.items() if (key, step) not in self.logged]
        if rows:
            self._write(Entry(attempt=self.attempt, metrics=tuple(rows)))
        self.logged |= {(key, step) for key, _, _, step in rows}

    def epoch(self, record: EpochRecord) -> None:
        """Log all metrics of one epoch."""
        self.metrics(record.metrics(), record.epoch)

    def dataset(self, name: str, context: str, digest: str, samples: int, files: Mapping[str, str]) -> None:
        """Log a dataset as an input, with our SHA-256 (MLflow keeps 36 characters of a digest, its source the rest)."""
        source = json.dumps({"sha256": digest, "files": dict(files)})
        profile = json.dumps({"samples": samples, "sha256": digest})
        entity = Dataset(f"{name}-{context}", digest[:36], "harness", source, profile=profile)
        inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", context)])]
        for left in (2, 1, 0):
            try:
                self._insist(partial(self.store.client.log_inputs, self.id, datasets=inputs))
                return
            except MlflowException:  # another worker made the same dataset at the same moment: the next time it is found
                if not left:
                    raise

    def file(self, artifact: str, write: Callable[[Path], object]) -> None:
        """Let `write(path)` make an artifact: in its place where artifacts are local, else beside and then uploaded."""
        if (root := _local(self.run)) is not None:
            try:
                (root / artifact).parent.mkdir(parents=True, exist_ok=True)
                write(root / artifact)
            except OSError as error:
                raise WriteError(f"{root / artifact} cannot be written: {error.strerror or error}") from error
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(artifact).name
            write(path)
            self._write(Entry(attempt=self.attempt, artifact=artifact), path)

    def move(self, artifact: str, to: str) -> None:
        """Give a file of the run the place of another, where artifacts are local."""
        if (root := _local(self.run)) is not None:
            (root / artifact).replace(root / to)

    def drop(self, *patterns: str) -> None:
        """Delete files of the run by their names, as for a shell, where artifacts are local; elsewhere MLflow has no way to."""
        if (root := _local(self.run)) is not None:
            for path in (path for pattern in patterns for path in root.glob(pattern)):
                path.unlink(missing_ok=True)

    def text(self, artifact: str, content: str) -> None:
        """Write a text artifact."""
        self.file(artifact, lambda path: path.write_text(content, encoding="utf-8"))

    def _write(self, entry: Entry, content: Path | None = None) -> None:
        """Write to the store; while it does not answer, and of a run that this process holds, to the journal.

        What is in the journal already goes first.
        """
        journal = self.store.journals.get(self.id)
        if journal is None:
            return self._send(entry, content)
        if self.deliver():
            try:
                return self._send(entry, content)
            except StoreAway as away:
                self.store.say(f"kept     {away}")
                self.store.say(f"         what it has not got waits in {journal.folder}")
        journal.add(entry, content)

    def _send(self, entry: Entry, content: Path | None) -> None:
        client = self.store.client
        with self.store.asked():
            if content is not None:
                return client.log_artifact(self.id, str(content), str(Path(entry.artifact).parent).removeprefix("."))
            tags = [RunTag(key, value) for key, value in entry.tags.items()]
            client.log_batch(self.id, [Metric(*row) for row in entry.metrics], tags=tags)

    def deliver(self, seconds: float = outage.SHARE) -> bool:
        """Give the store what waits for it, in order and for about so long; whether that was all."""
        if not (journal := self.store.journals.get(self.id)) or not journal.waiting:
            return True
        end = time.monotonic() + seconds
        with suppress(StoreAway):
            while journal.waiting and time.monotonic() < end:
                entry = journal.waiting[0]
                self._send(entry, journal.content(entry) if entry.artifact else None)
                journal.drop()
        if journal.waiting:
            return False
        self.store.say("back     the store answers again and has got all")
        return True

    def _insist(self, call: Callable[[], object]) -> None:
        """Do what cannot be kept: behind all that was, and for a minute again while the store does not answer."""

        def behind() -> None:
            if not self.deliver(math.inf):
                raise StoreAway(f"store {self.store.uri} does not answer")
            call()

        try:
            self.store.insist(behind)
        except StoreAway as away:
            journal = self.store.journals.get(self.id)
            if not journal or not journal.waiting:
                raise
            how = f"`harness train --resume {self.id}` delivers it and goes on; so does its study, launched again"
            raise StoreAway(f"{away}; what it has not got waits in {journal.folder}: {how}") from None

    def model(self, module: nn.Module, inputs: Tensor, step: int) -> None:
        """Log a torch module as `model`, in the pt2 format: a traced graph and its weights, without pickle.

        The same files go to a logged model of the experiment, where MLflow keeps models, and to the run's own artifacts,
        where people look for them.
        """
        self._insist(partial(self._model, module, inputs, step))

    def _model(self, module: nn.Module, inputs: Tensor, step: int) -> None:
        if find_spec("pytorch_lightning"):  # where that is installed, mlflow imports it, and it torchvision
            from harness.data import torchvision_module

            torchvision_module()
        import mlflow.pytorch

        client, experiment = self.store.client, self.run.info.experiment_id
        for before in client.search_logged_models([experiment], filter_string=f"source_run_id = '{self.id}'"):
            client.delete_logged_model(before.model_id)  # of a process that was killed after it
        logged = client.create_logged_model(experiment, "model", source_run_id=self.id)
        with tempfile.TemporaryDirectory() as folder:
            place = f"{folder}/model"
            mlflow.pytorch.save_model(
                module,
                place,
                mlflow_model=Model("model", run_id=self.id, model_id=logged.model_id),
                signature=infer_signature(inputs.numpy(), module(inputs).detach().numpy()),
                input_example=inputs.numpy(),
                pip_requirements=[f"torch=={version('torch').partition('+')[0]}"],
                serialization_format="pt2",
            )
            client.log_model_artifacts(logged.model_id, place)
            client.log_artifacts(self.id, place, "model")
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(self.id, [LoggedModelOutput(logged.model_id, step)])

    def finish(self, status: str) -> None:
        """End the run: FINISHED, once the store has got all of it; FAILED or KILLED, if the store answers."""
        if status == "FINISHED":
            return self._insist(partial(self.store.end, self.id, status))
        self.deliver()
        self.store.end(self.id, status)

    @contextmanager
    def alone(self, seconds: float = 0.5) -> Iterator[None]:
        """Hold this run: a second process of this machine that would train it is refused, until this one ends or dies.

        What another one has left in the run's journal is delivered first. Raises InputError for a journal that is none.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.store.lock(self.id, seconds))
            except Timeout:
                raise InputError(f"run {self.id} is being trained by another process") from None
            journal = self.store.journals[self.id] = Journal(self.store.journal_folder(self.id))
            held.callback(self.store.journals.pop, self.id)
            if journal.waiting and journal.waiting[-1].attempt != self.store.open(self.id).attempt:
                self.store.say(f"void     {journal.folder}: the run went on without it")
                journal.clear()
            elif journal.waiting:
                self._insist(lambda: None)
            yield

    @property
    def page(self) -> str:
        """Where `mlflow ui` shows this run."""
        return self.store.page(self.run.info.experiment_id, self.id)

    def place(self, artifact: str) -> str:
        """Where a person opens a file of the run: its path where artifacts are local, else where `mlflow ui` shows it."""
        root = _local(self.run)
        return f"{self.page}/artifacts/{artifact}" if root is None else str(root / artifact)


def _local(run: Run) -> Path | None:
    """The folder of a run's artifacts where it is on this machine's disk."""
    uri = str(run.info.artifact_uri)
    return Path(local_file_uri_to_path(uri)) if uri.startswith(("file:", "/")) else None


# With a server it prints two lines for every run that ends, and a bar for every file.
QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


@contextmanager
def told(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables that MLflow reads at each call, for a while; those that the user has set stay."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _refused(uri: str) -> Iterator[None]:
    """Turn whatever MLflow, SQLAlchemy and the disk raise for an unusable store into one line."""
    try:
        yield
    except (HarnessError, KeyboardInterrupt):
        raise
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, Timeout) as error:
        raise StoreError(f"store {uri} cannot be opened or written: {_line(error)}") from error


@contextmanager
def in_one_line(uri: str) -> Iterator[None]:
    """Turn what MLflow raises for a store that takes no more of what had begun into one line, as WriteError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        raise WriteError(f"store {uri} cannot be written: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """The first line of a message, without what follows it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _unknown(run_id: str, where: str) -> InputError:
    return InputError(
        f"run {short(run_id)} is not in the store {where}; "
        f"set MLFLOW_TRACKING_URI to the store that has it (a relative sqlite path means another file in every folder)"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"
