"""The MLflow store: where it is, opened, asked for runs, and who may write which."""

from __future__ import annotations

import getpass
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

from harness import chart, outage, storefile
from harness.errors import HarnessError, InputError, StoreError, WriteError, first_line, refusal, short
from harness.interrupts import waiting
from harness.journal import Entry, Journal
from harness.locks import Locks, own_folder

UNFINISHED = ("RUNNING", "SCHEDULED")


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` of the working directory; the path of a sqlite store made absolute.

    Raises StoreError for a path that would mean something else in a URI, and for a sqlite store that is no file.
    """
    path = storefile.path_of(uri := storefile.asked())
    if uri.startswith("sqlite") and (path is None or str(path) in (".", ":memory:")):
        raise StoreError(refusal("MLFLOW_TRACKING_URI", uri, "of sqlite stores sqlite:///FILE"))
    return storefile.uri_of(path) if path else uri


def schema() -> str:
    """The schema that this MLflow wants a database to have."""
    from mlflow.store.db.utils import _get_latest_schema_revision  # half a second that only this needs to wait for

    return str(_get_latest_schema_revision())


class Store:
    """An open tracking store. Raises StoreError, in one line, when it cannot be reached or written.

    One that stops answering later raises StoreAway: the first call that meets it within 20 seconds, others at once, until
    it answers again. `say` hears of it.
    """

    def __init__(self, uri: str | None = None, say: Callable[[str], None] = lambda line: None) -> None:
        self.uri = uri or store_uri()
        self.file = storefile.path_of(self.uri)  # None for a server
        self.say = say
        self.uncut = waiting if self.file else nullcontext  # a server may keep a call for long
        self.outage = outage.Outage(self.uri, self._knock, self.uncut)
        # beside a sqlite store, so that whoever shares the disk shares the locks
        self.locks = Locks(self.folder / "mlruns" / ".locks" if self.folder else own_folder())
        self.experiments: dict[str, str] = {}  # name -> id, of those asked for
        self.journals: dict[str, Journal] = {}  # run id -> what waits of it, of runs that this process holds
        for name in ("mlflow", "alembic"):  # they tell of every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for every locked file
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for every second try
        with refused(self.uri), storefile.alone(self.file), outage.told(outage.IMPATIENT):
            if self.file:
                storefile.make(self.file, _filled)
                _engine(self.uri).dispose()  # its connections may be to a file that was deleted, and made anew by whomever
            self.client = MlflowClient(self.uri)
            self.client.search_experiments(max_results=1)

    @classmethod
    def there(cls, uri: str | None = None) -> Store | None:
        """The store; None where it would be a sqlite file that does not exist yet: looking creates nothing."""
        file = storefile.path_of(uri := uri or store_uri())
        return None if file and not file.exists() else cls(uri)

    @classmethod
    def holding(cls, run_id: str) -> Store:
        """The store, where it may have a run. Raises InputError where it would be a sqlite file that does not exist yet."""
        if (store := cls.there()) is None:
            raise _unknown(run_id, f"{store_uri()}, which does not exist")
        return store

    @property
    def folder(self) -> Path | None:
        """Where a sqlite store lies; None for a server."""
        return self.file.parent if self.file else None

    def _knock(self) -> None:
        """Ask shortly whether it answers."""
        if self.file:
            return storefile.knock(self.file, outage.SHORT)
        with outage.told(outage.SHORTLY):
            self.client.search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """The id of an experiment, created if need be; its artifacts lie beside a sqlite store, wherever a run starts."""
        if name in self.experiments:
            return self.experiments[name]
        with refused(self.uri), storefile.alone(self.file), self.outage.noticed():
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

    def create(self, experiment: str, name: str, command: str = "harness train", tags: Mapping[str, object] = {}) -> Run:
        """A new run, RUNNING, in an experiment."""
        with refused(self.uri), self.outage.noticed():
            said = {"mlflow.user": _user(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
            said |= {key: str(value) for key, value in tags.items()}
            return self.client.create_run(self.experiment(experiment), run_name=name, tags=said)

    def get(self, run_id: str) -> Run:
        """A run by its id. Raises InputError when the store has none."""
        try:
            with self.outage.noticed():
                return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise StoreError(f"store {self.uri}: {first_line(error)}") from None
            raise _unknown(run_id, self.uri) from None

    def runs(self, experiment: str, **tags: str) -> list[Run]:
        """The runs of an experiment that have these tags, the newest first; deleted ones are none."""
        with refused(self.uri), self.outage.noticed():
            if (found := self.client.get_experiment_by_name(experiment)) is None:
                return []
            search = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
            return self._search([found.experiment_id], search)

    def unfinished(self) -> list[Run]:
        """The runs of all experiments that have not ended, whoever began them."""
        with refused(self.uri):
            experiments = [found.experiment_id for found in self.client.search_experiments(max_results=10_000)]
            return [run for state in UNFINISHED for run in self._search(experiments, f"attributes.status = '{state}'")]

    def _search(self, experiments: Sequence[str], search: str) -> list[Run]:
        runs, token = list[Run](), None
        while True:
            page = self.client.search_runs(list(experiments), search, max_results=1000, page_token=token)
            runs += page
            if not (token := page.token):
                return runs

    def latest(self) -> Run:
        """The run that was begun last of those that finished. Raises InputError where none has."""
        with refused(self.uri):
            experiments = [found.experiment_id for found in self.client.search_experiments()]
            search = "attributes.status = 'FINISHED' and tags.config_digest LIKE '%'"
            runs = self.client.search_runs(experiments, search, max_results=1, order_by=["attributes.start_time DESC"])
        if not runs:
            raise InputError(f"the store {self.uri} has no finished run")
        return runs[0]

    def end(self, run_id: str, status: str) -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        with self.outage.noticed():
            self.client.set_terminated(run_id, status)

    def reap(self, run_id: str, why: str) -> bool:
        """End a run that has no process: KILLED, as its process was, with the reason in the tag `error`.

        False where one has taken it up meanwhile, or it has ended.
        """
        with suppress(Timeout), self.locks.hold(run_id):
            if self.get(run_id).info.status in UNFINISHED:
                self.client.set_tag(run_id, "error", why)
                self.end(run_id, "KILLED")
                return True
        return False

    def update(self, run_id: str, *, status: str | None = None, name: str | None = None) -> None:
        """Change the state of a run that goes on, or its name."""
        with self.outage.noticed():
            self.client.update_run(run_id, status, name)

    def send(self, run_id: str, entry: Entry, content: Path | None = None) -> None:
        """Write an entry, a file's with its content, into a run."""
        with self.outage.noticed():
            if content is not None:
                return self.client.log_artifact(run_id, str(content), str(Path(entry.artifact).parent).removeprefix("."))
            tags = [RunTag(key, value) for key, value in entry.tags.items()]
            self.client.log_batch(run_id, [Metric(*row) for row in entry.metrics], tags=tags)

    def study_lock(self, study: str) -> str:
        """The name that a launch of a study holds."""
        return f"study-{study}-{hashlib.sha256(self.uri.encode()).hexdigest()[:8]}"

    def journal_folder(self, run_id: str) -> Path:
        """Where a run keeps what this store has not got: beside a sqlite store, so that whoever shares the disk finds it;
        for a server in the user's cache on this machine.
        """
        cache = Path.home() / ".cache" / "harness" / "journal"
        return (self.folder / "mlruns" / ".journal" if self.folder else cache) / run_id

    def share(self, experiment_id: str, name: str, view: str) -> None:
        """Keep a view of an experiment under a name, for `mlflow ui`."""
        with self.outage.noticed():
            self.client.set_experiment_tag(experiment_id, chart.TAG + name, view)

    def page(self, experiment_id: str, run_id: str) -> str:
        """Where `mlflow ui` shows a run."""
        return f"{chart.UI}/#/experiments/{experiment_id}/runs/{run_id}"


@contextmanager
def refused(uri: str) -> Iterator[None]:
    """Turn whatever MLflow, SQLAlchemy and the disk raise for an unusable store into one line."""
    try:
        yield
    except (HarnessError, KeyboardInterrupt):
        raise
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, Timeout, ValueError, ImportError) as error:
        # the last two: of a port that is no number, of a database's driver
        raise StoreError(f"store {uri} cannot be opened or written: {first_line(error)}") from error


@contextmanager
def in_one_line(uri: str) -> Iterator[None]:
    """Turn what MLflow raises for a store that takes no more of what had begun into one line, as WriteError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        raise WriteError(f"store {uri} cannot be written: {first_line(error)}") from error


def _filled(uri: str) -> None:
    """Have MLflow make its tables in a new sqlite file. None of its hundreds of steps waits for the disk."""
    engine = _engine(uri)
    event.listen(engine, "connect", lambda connection, record: connection.execute("PRAGMA synchronous=OFF"))
    engine.dispose()  # it has tried a connection already
    MlflowClient(uri).search_experiments(max_results=1)
    engine.dispose()  # none of them is left, for the file is to get another name


def _engine(uri: str) -> Engine:
    """The engine that this process's clients of a store share."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # half a second that a server need not wait for

    return SqlAlchemyStore._get_or_create_engine(uri)


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
