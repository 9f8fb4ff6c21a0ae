"""Writes a run into the store, and finds its files again; what the store does not take waits in the run's journal."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from harness import loggedmodel
from harness.delivery import Delivery
from harness.errors import InputError, MissingArtifact, StoreAway, TakenOver, WriteError
from harness.journal import Entry, Journal, Row
from harness.results import EpochRecord
from harness.store import UNFINISHED, Store, refused

if TYPE_CHECKING:
    from torch import Tensor, nn

PAUSE = 5.0  # s between calls with rows of epochs: one takes 7 ms for one epoch, 9 for four


@dataclass
class RunLog:
    """Writes one run. Metric rows that the store has already are not written twice."""

    store: Store
    run: Run
    logged: set[tuple[str, int]] = field(default_factory=set)  # (key, step), those of `rows` too
    rows: list[Row] = field(default_factory=list)  # not sent yet
    sent: float = -math.inf  # when some were last

    @classmethod
    def of(cls, store: Store, run_id: str) -> RunLog:
        """A run that is there. Raises InputError when the store has none."""
        return cls(store, store.get(run_id))

    @property
    def id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def delivery(self) -> Delivery:
        """Brings what is written to the store."""
        return Delivery(self.store, self.id)

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
        self._check_there()
        if self.begun or self.run.info.status not in UNFINISHED:
            raise InputError(f"MLFLOW_RUN_ID={self.id} already holds a run; unset it to start another")

    def _check_there(self) -> None:
        if self.run.info.lifecycle_stage != "active":
            raise InputError(f"run {self.id} was deleted; restore it: mlflow runs restore --run-id {self.id}")

    def copy(self, other: RunLog, artifacts: Sequence[str]) -> None:
        """Take over another run's metrics, but for those that this one has, and small files. A figure may be lost."""
        client = self.store.client
        self.resume()
        with self.store.outage.noticed():
            found = [row for key in other.run.data.metrics for row in client.get_metric_history(other.id, key)]
            rows = [row for row in found if (row.key, row.step) not in self.logged]
            client.log_batch(self.id, [Metric(row.key, row.value, row.timestamp, row.step) for row in rows])
        with tempfile.TemporaryDirectory() as folder:
            for artifact in artifacts:
                with suppress(*[MissingArtifact] if artifact.startswith("plots/") else []):
                    self.file(artifact, partial(shutil.copyfile, other.fetch(artifact, folder)))

    def check_unfinished(self) -> None:
        """Raise InputError when there is nothing to go on with."""
        self._check_there()
        if self.run.info.status == "FINISHED":
            raise InputError(f"run {self.id} is FINISHED; there is nothing to resume")
        if not self.begun:
            raise InputError(f"run {self.id} is no harness run that had begun; start it afresh")

    def resume(self) -> None:
        """Make the run RUNNING again, without the error that it may have failed with, and learn which rows it has."""
        attempt = self.attempt + (self.run.info.status != "SCHEDULED")
        self.drop("traceback.txt")
        self.store.outage.outlasted(partial(self._resume, attempt))
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
            if (now := RunLog.of(self.store, self.id).attempt) != self.attempt:
                raise TakenOver(f"run {self.id} was taken up by another process, as attempt {now}; this one leaves it alone")

    def forget_error(self) -> None:
        """Take away the error that an earlier attempt ended with."""
        self.drop("traceback.txt")
        if "error" in self.run.data.tags:
            self.store.client.delete_tag(self.id, "error")

    def points(self, metric: str) -> dict[int, float]:
        """A metric of the run by its step."""
        rows = self.store.outage.outlasted(lambda: self.store.client.get_metric_history(self.id, metric))
        return {row.step: row.value for row in rows}

    def fetch(self, artifact: str, into: str) -> Path:
        """A local copy of one file of the run. Raises InputError when it has no such file."""
        if (root := _local(self.run)) is not None and (root / artifact).is_file():
            return root / artifact
        if root is None:
            folder = str(Path(artifact).parent).removeprefix(".")
            with refused(self.store.uri), self.store.outage.noticed():
                files = [file.path for file in self.store.client.list_artifacts(self.id, folder or None) if not file.is_dir]
                if artifact in files:
                    return Path(self.store.client.download_artifacts(self.id, artifact, into))
        raise MissingArtifact(f"run {self.id} has no artifact {artifact}")

    def params(self, params: Mapping[str, str]) -> None:
        """Log params that are absent: `mlflow run` has logged its own spelling, and params cannot change."""
        absent = [Param(key, value[:6000]) for key, value in params.items() if key not in self.run.data.params]
        self.delivery.insist(partial(self.store.client.log_batch, self.id, params=absent))

    def tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, as text."""
        self.delivery.write(Entry(attempt=self.attempt, tags={key: str(value) for key, value in tags.items()}))
        self.run.data.tags.update({key: str(value) for key, value in tags.items()})

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of one step, with whatever waits."""
        self._add(metrics, step)
        self.flush()

    def epoch(self, record: EpochRecord) -> None:
        """Log all metrics of one epoch: the first at once, others within PAUSE of the last call with those of the next ones.

        Whoever goes on with a run that was killed meanwhile logs them from its checkpoint.
        """
        self._add(record.metrics(), record.epoch)
        if time.monotonic() - self.sent >= PAUSE:
            self.flush()

    def _add(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        rows = [(key, float(value), now, step) for key, value in metrics.items() if (key, step) not in self.logged]
        self.rows += rows
        self.logged |= {(key, step) for key, _, _, step in rows}

    def flush(self) -> None:
        """Send the rows that wait. Where that fails, they are in the run's checkpoint alone."""
        rows, self.rows, self.sent = self.rows, [], time.monotonic()
        if rows:
            self.delivery.write(Entry(attempt=self.attempt, metrics=tuple(rows)))

    def datasets(self, name: str, samples: Mapping[str, int], digest: str, files: Mapping[str, str]) -> None:
        """Log what is used of a dataset in each context, so many samples, as inputs.

        They carry our SHA-256 (MLflow keeps 36 characters of a digest, its source the rest).
        """
        source = json.dumps({"sha256": digest, "files": dict(files)})
        inputs = []
        for context, count in samples.items():
            profile = json.dumps({"samples": count, "sha256": digest})
            entity = Dataset(f"{name}-{context}", digest[:36], "harness", source, profile=profile)
            inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", context)]))
        for left in (2, 1, 0):
            try:
                self.delivery.insist(partial(self.store.client.log_inputs, self.id, datasets=inputs))
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
            self.delivery.write(Entry(attempt=self.attempt, artifact=artifact), path)

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

    def model(self, module: nn.Module, inputs: Tensor, step: int) -> None:
        """Log a torch module as `model`: as a logged model of the experiment, and among the run's own artifacts."""
        self.delivery.insist(partial(loggedmodel.log, self.store.client, self.run, module, inputs, step))

    def finish(self, status: str) -> None:
        """End the run: FINISHED, once the store has got all of it; FAILED or KILLED, if the store answers."""
        if status == "FINISHED":
            self.flush()
            return self.delivery.insist(partial(self.store.end, self.id, status))
        try:
            self.flush()
            self.delivery.deliver()
        finally:  # a store that takes no more rows may take this
            self.store.end(self.id, status)

    @contextmanager
    def alone(self, seconds: float = 0.5) -> Iterator[None]:
        """Hold this run: a second process of this machine that would train it is refused, until this one ends or dies.

        What another one has left in the run's journal is delivered first. Raises InputError for a journal that is none.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.store.locks.hold(self.id, seconds))
            except Timeout:
                raise InputError(f"run {self.id} is being trained by another process") from None
            journal = self.store.journals[self.id] = Journal(self.store.journal_folder(self.id))
            held.callback(self.store.journals.pop, self.id)
            if journal.waiting and journal.waiting[-1].attempt != RunLog.of(self.store, self.id).attempt:
                self.store.say(f"void     {journal.folder}: the run went on without it")
                journal.clear()
            elif journal.waiting:
                self.delivery.insist()
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
