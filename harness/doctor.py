"""What a machine has of all that a run needs, and which runs in the store have lost their process."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.config import slug
from harness.errors import HOMELESS, DataError, HarnessError, StoreError

if TYPE_CHECKING:
    from harness.store import Store

State = Literal["ok", "warn", "bad"]
SCARCE, SHORT = 100e6, 2e9  # bytes: a run takes a few megabytes, a study tens, full MNIST 120
MOMENT = 60  # seconds: a run is in the store a moment before its process holds it
# with another value of these the same machine gives other last bits
BITS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: `bad` is what a run would fail on, `warn` what a person should know."""

    about: str
    state: State
    text: str  # what was found and, where that is not ok, what to do

    def __str__(self) -> str:
        return f"{self.state:<5}{self.about:<12}{self.text}"


def examine(data_dir: str, reap: bool = False, older_than: int = 1440) -> Iterator[Finding]:
    """Look at everything in turn; a check that breaks is a finding too. No store, folder or file is created.

    `reap` ends the runs that have no process any more. One that `mlflow run` began, and whose command it never started,
    counts as such when it is older than `older_than` minutes: until then its environment may be being built.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "torch": _torch,
        "torchvision": _torchvision,
        "machine": _machine,
        "environment": _environment,
        "git": _git,
        "disk": lambda: _disk(data_dir),
        "data": lambda: _data(data_dir),
        "store": lambda: _store(reap, older_than),
    }
    for about, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            kind = "" if isinstance(error, HarnessError) else f"{type(error).__name__}: "
            yield Finding(about, "bad", " ".join(f"{kind}{error}".split())[:500])


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in _requirements()]
    needed = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = 0
    for need in needed:
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong += 1
            yield Finding("packages", "bad", f"{need.name} is not installed: pip install '{need}'")
            continue
        if not need.specifier.contains(found, prereleases=True):
            wrong += 1
            yield Finding("packages", "warn", f"{need.name} is {found}, not {need.specifier}: pip install '{need}'")
    if not wrong:
        yield Finding("packages", "ok", f"{len(needed)} as pinned, mlflow {metadata.version('mlflow')}")


def _requirements() -> list[str]:
    """The package's dependencies: of the checkout that this is, else of what was installed."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        declared: dict[str, Any] = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if declared.get("name") == "harness":
            return list(declared["dependencies"])
    return metadata.requires("harness") or []


def _torch() -> Iterator[Finding]:
    import torch

    from harness.training import exact_arithmetic

    with exact_arithmetic():
        factor = torch.linspace(-1, 1, 256 * 256).reshape(256, 256)
        first, second = (hashlib.sha256((factor @ factor).numpy().tobytes()).hexdigest()[:8] for _ in range(2))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    here = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}{gpu}"
    if first == second:
        yield Finding("torch", "ok", f"{here}, one thread a run; a product done twice has the digest {first}")
    else:
        remedy = "nothing can be repeated here: test its memory, and its cooling"
        yield Finding("torch", "bad", f"{here}; a product done twice has the digests {first} and {second}; {remedy}")


def _torchvision() -> Iterator[Finding]:
    from harness.mirrors import torchvision_module

    try:
        torchvision_module()
    except Exception as error:  # whatever two libraries that do not fit raise
        line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        remedy = "data that is not here cannot be fetched; install it from where torch came"
        yield Finding("torchvision", "warn", f"it cannot be imported: {line}; {remedy}")
    else:
        yield Finding("torchvision", "ok", f"torchvision {metadata.version('torchvision')}")


def _machine() -> Iterator[Finding]:
    from dask.system import CPU_COUNT

    yield Finding("machine", "ok", f"{CPU_COUNT} of {os.cpu_count()} cores, so studies train in {CPU_COUNT} processes")


def _environment() -> Iterator[Finding]:
    try:
        Path.home()
    except RuntimeError:
        yield Finding("environment", "bad", HOMELESS)
    left = os.environ.get("MLFLOW_RUN_ID")
    if left:
        text = f"MLFLOW_RUN_ID={left}: the next run would be written into that one; unset it"
        yield Finding("environment", "warn", text)
    moving = [f"{name}={os.environ[name]}" for name in BITS if os.environ.get(name)]
    if moving:
        text = f"{' '.join(moving)}: results have other bits than without; unset, or set wherever runs are compared"
        yield Finding("environment", "warn", text)
    dask = sorted(name for name in os.environ if name.startswith("DASK_"))
    if dask:
        text = f"{' '.join(dask)}: a study's workers are started by these, too; unset what you did not mean for it"
        yield Finding("environment", "warn", text)
    threads = " ".join(f"{name}={os.environ[name]}" for name in THREADS if os.environ.get(name))
    if threads:
        yield Finding("environment", "ok", f"{threads}, but a run computes with one thread all the same")
    elif not (left or moving or dask):
        yield Finding("environment", "ok", "nothing set that would change a result")


def _git() -> Iterator[Finding]:
    from harness.record import code

    found = code()
    if "commit" not in found:
        there = "git is not installed" if shutil.which("git") is None else "this code lies in no git checkout"
        yield Finding("git", "warn", f"{there}: runs record version and code digest, but no commit; run from a clone")
    elif found["dirty"]:
        yield Finding("git", "ok", f"commit {found['commit'][:8]} with changes; runs record both")
    else:
        yield Finding("git", "ok", f"commit {found['commit'][:8]}, nothing changed")


def _disk(data_dir: str) -> Iterator[Finding]:
    from harness.store import store_uri
    from harness.storefile import path_of

    folders = {"data": Path(data_dir).expanduser()}
    if path := path_of(store_uri()):
        folders["store"] = path.parent
    for what, folder in folders.items():
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
        free, for_what = shutil.disk_usage(there).free, f"for the {what} at {folder}"
        if not os.access(there, os.W_OK):
            yield Finding("disk", "bad", f"{there} cannot be written, {for_what}; name another folder")
        elif free < SHORT:
            state: State = "bad" if free < SCARCE else "warn"
            yield Finding("disk", state, f"{free / 1e9:.2f} GB free {for_what}; make room, or name another disk")
        else:
            yield Finding("disk", "ok", f"{free / 1e9:.0f} GB free {for_what}")


def _data(data_dir: str) -> Iterator[Finding]:
    from harness.data import DATASETS, files, load

    for name in DATASETS:
        needed = files(name, data_dir)
        missing = [path.name for path in needed if not path.exists()]
        if missing and len(missing) == len(needed):
            yield Finding("data", "ok", f"{name} is not in {data_dir}; it is fetched when a run asks for it")
        elif missing:
            yield Finding("data", "warn", f"{name} in {data_dir} lacks {', '.join(missing)}; the next run fetches them")
        else:
            try:
                found = load(name, data_dir)
                samples = f"{len(found.train):,} training and {len(found.test):,} test samples"
                yield Finding("data", "ok", f"{name} is whole by SHA-256, {samples}, data_digest {found.digest[:8]}")
            except DataError as error:
                yield Finding("data", "bad", str(error))


def _store(reap: bool, older_than: int) -> Iterator[Finding]:
    from harness.store import Store, schema, store_uri
    from harness.storefile import check, path_of

    uri = store_uri()
    if (path := path_of(uri)) and path.exists():
        check(path, schema())
    try:
        store = Store.there(uri)
    except StoreError as error:
        raise StoreError(f"{error}; start it, or set MLFLOW_TRACKING_URI to another") from None
    if store is None:
        yield Finding("store", "ok", f"{uri} does not exist yet; the first run makes it")
        return
    how = "answers" if store.folder is None else "is whole, can be written and has the schema of this mlflow"
    yield Finding("store", "ok", f"{uri} {how}")
    yield from _runs(store, reap, older_than)


def _runs(store: Store, reap: bool, older_than: int) -> Iterator[Finding]:
    """What has become of the runs that have not ended; those of other programs are not spoken of."""
    alive = 0
    for run in store.unfinished():
        gone, why = judge(store, run, older_than * 60)
        told = f"{run.info.run_id} {run.info.run_name}"
        if gone and reap:
            ended = store.reap(run.info.run_id, slug(f"reaped {why}"))
            yield Finding("runs", "ok", f"{told} {f'is KILLED: {why}' if ended else 'has ended or found a process just now'}")
        elif gone:
            yield Finding("runs", "warn", f"{told} is {run.info.status}, but {why}; end it: harness doctor --reap")
        elif why:
            yield Finding("runs", "warn", f"{told} is {run.info.status}: {why}")
        else:
            alive += 1
    yield Finding("runs", "ok", f"{alive} have a process, or are another program's")


def judge(store: Store, run: Any, seconds: float) -> tuple[bool, str]:
    """Whether a run that has not ended has no process any more, and why; with a reason alone nobody here can know.

    A process holds the lock of the run that it trains, and a launch that of its study, as long as they live. A run is
    harness's when harness created it, or a process of harness has held it. Of those of others only one is known to be dead:
    `mlflow run` set about building its environment, and never noted that it started the command.
    """
    tags, run_id, age = run.data.tags, run.info.run_id, time.time() - run.info.start_time / 1000
    study = tags.get("study") or tags.get("report")
    locks = [run_id, *([store.study_lock(study)] if study else [])]
    if "config_digest" in tags or tags.get("mlflow.source.name", "").startswith("harness ") or store.locks.ever_held(run_id):
        if store.folder is None:
            remedy = f"if it is, go on with it: harness train --resume {run_id}, or launch its study again"
            return False, f"whether its process is gone can be seen only where a store is a file; {remedy}"
        if any(store.locks.held(lock) for lock in locks):
            return False, ""
        if age < MOMENT and not any(store.locks.ever_held(lock) for lock in locks):
            return False, f"it began {age:.0f} s ago and nobody holds it yet; look again in a minute"
        return True, "its process is gone"
    if "mlflow.project.backend" in tags or "mlflow.project.env" not in tags or run.data.metrics:
        return False, ""
    if age < seconds:
        remedy = f"if it is not: harness doctor --reap --older-than {int(age / 60)}"
        return False, f"mlflow run may be building its environment, since {age / 60:.0f} min; {remedy}"
    return True, f"mlflow run has not built its environment in {age / 60:.0f} min"
