"""The one engine: Dask distributed, on this machine or on a cluster. The only module that speaks to it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import queue
import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import dask
import torch
from dask.system import CPU_COUNT
from distributed import Client, KilledWorker, LocalCluster, Status, WorkerPlugin, get_worker, rpc, wait
from distributed.worker import thread_state  # type: ignore[attr-defined]

from harness import nursery
from harness.config import RunConfig
from harness.errors import EngineError, InputError
from harness.numerics import NATIVE, current, processor
from harness.recorder import RunResult
from harness.results import EpochRecord
from harness.sources import code_digest
from harness.worker import Tell, Work, work

ANSWER = 10  # seconds within which a scheduler, and one of its workers, must have answered
PARTING = 0.2  # seconds that a worker has for its last words
SILENCE = 30  # seconds without a sign of life after which a worker of this machine, stopped say, is killed and replaced
QUIET = {  # what Dask looks at many times a second, in the driver and in each worker: 3% of a study's time
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1 s",
    "distributed.admin.system-monitor.interval": "10 s",
}
Came = Mapping[str, RunResult | str]  # run id -> result, or why it failed


@dataclass
class Engine:
    """Who trains: worker processes of this machine, born when first needed, a cluster that is there, or this process."""

    workers: int  # 0: this process
    client: Client | None = None  # of a cluster
    ours: ExitStack | None = None  # keeps the processes of this machine
    cluster: LocalCluster | None = None  # of them

    def trained(self, works: Sequence[Work], tell: Tell) -> Generator[tuple[Work, Came]]:
        """Train stacks, in this order as workers come free; yields each with what its runs came to.

        A stack whose workers die again and again is cut into single runs; a single run that does is given up. A process of
        this machine in which a run failed is replaced by a fresh one: want of memory, say, would fail all others too. To close
        the iterator is to stop: workers of this machine at once, others when they look up at the end of an epoch.
        """
        if not works:
            return
        if not self.workers:
            yield from ((what, work(what, tell)) for what in works)
        elif self.ours is None:
            assert self.client is not None
            yield from _trained(self.client, works, tell)
        else:
            try:
                yield from _trained(self._local(min(self.workers, len(works))), works, tell, ours=True)
            except BaseException:
                self.ours.close()
                raise

    def spread(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """What `map` does, by processes of this machine that have trained; here where there are none, or where they fail."""
        given = [list(some) for some in items]
        if self.cluster is not None and self.client is not None:
            with suppress(Exception), warnings.catch_warnings():  # what is wrong with the function shows here as well
                warnings.simplefilter("ignore")  # of what is large, which goes no further than this machine
                futures = self.client.map(function, *given, pure=False)
                while self.client.nthreads():
                    with suppress(TimeoutError):
                        wait(futures, SILENCE)
                        return list(self.client.gather(futures))
                self.client.cancel(futures)
        return list(map(function, *given))

    def _local(self, workers: int) -> Client:
        """Processes of this machine, as many as there is work for; those of earlier work are still there."""
        assert self.ours is not None
        if self.client is None or self.cluster is None:
            self.cluster, self.client = self.ours.enter_context(_local(workers))
        elif workers > len(self.cluster.workers):
            self.cluster.scale(workers)
        return self.client


@contextmanager
def opened(workers: int | None, scheduler: str | None, configs: Sequence[RunConfig]) -> Iterator[Engine]:
    """The engine that was asked for; by default a process for each core.

    Raises InputError for workers beside a scheduler, which has its own, when it does not answer, or when its workers would not
    train what this process would.
    """
    if workers is not None and scheduler is not None:
        raise InputError(f"workers={workers} cannot go with scheduler {scheduler}, which has workers of its own")
    for name in ("distributed", "asyncio"):  # they tell of every connection that breaks; what happens to a run, the run tells
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler is None:
        with ExitStack() as ours:
            yield Engine(CPU_COUNT if workers is None else workers, ours=ours)
        return
    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's thread has a loop of its own
            thread.submit(asyncio.run, _identity(scheduler)).result()
        client = Client(scheduler, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"scheduler {scheduler} does not answer within {ANSWER} s: {_line(error)}") from None
    with client:
        _check(client, scheduler, configs)
        yield Engine(sum(client.nthreads().values()), client)


async def _identity(scheduler: str) -> None:
    """Ask a scheduler who it is. A Client would wait for ever for one that accepts the connection and stays silent."""

    async def ask() -> None:
        async with rpc(scheduler) as there:
            await there.identity()

    await asyncio.wait_for(ask(), ANSWER)


def _check(client: Client, scheduler: str, configs: Sequence[RunConfig]) -> None:
    """Raise InputError when there is no worker, or one that would train something else."""
    try:
        client.wait_for_workers(1, timeout=ANSWER)
    except TimeoutError:
        raise InputError(f"scheduler {scheduler} has no worker within {ANSWER} s; start one: dask worker {scheduler}") from None
    try:
        client.run_on_scheduler(_codes, configs[:1])  # it unpickles tasks, so it must know harness too
        codes = client.run(_codes, configs)
    except Exception as error:
        raise InputError(f"scheduler {scheduler}: it or a worker cannot run harness: {_line(error)}") from None
    if other := sorted(worker for worker, code in codes.items() if code != _codes(configs)):
        raise InputError(
            f"scheduler {scheduler}: worker {other[0]} has other code, numerics, torch, numpy or kind of processor than this "
            f"process"
        )


@contextmanager
def _local(workers: int) -> Iterator[tuple[LocalCluster, Client]]:
    """Worker processes of this machine, one thread each; they die with this process."""
    born = {
        "distributed.worker.multiprocessing-method": nursery.METHOD,  # those too that take a dead one's place
        "distributed.scheduler.worker-saturation": 1.0,  # what waits is handed out as a worker comes free, not before
        "distributed.scheduler.worker-ttl": f"{SILENCE} s",  # looked at as often: Dask's own 5 minutes may become 10
        **QUIET,
    }
    try:
        with dask.config.set(born), _environment(), _started(workers) as cluster, Client(cluster) as client:
            try:
                yield cluster, client
            finally:
                # checkpoints are whole at any moment, and saying goodbye takes a second, four where a worker is busy
                for nanny in cluster.workers.values():
                    with suppress(OSError, TypeError, AttributeError):  # gone, being born, no such signal
                        os.kill(nanny.pid, signal.SIGKILL)
    finally:
        nursery.end()


@contextmanager
def _environment() -> Iterator[None]:
    """Leaves the environment as it was: into it go the variables of workers, and Dask does not take them back."""
    names = ("PYTHONHASHSEED", "__DASK_PARENT_PID", *dask.config.get("distributed.nanny.pre-spawn-environ"))
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _started(workers: int) -> LocalCluster:
    """A cluster of this machine. It does not start where a worker dies at birth: then once more."""
    quiet: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL, "plugins": (Newborn(),)}
    nursery.begin()
    for _ in range(2):
        try:
            return LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, **quiet)
        except RuntimeError as error:
            why = _line(error)
    hint = 'a script must call run_study under if __name__ == "__main__": or with workers=0'
    raise EngineError(f"worker processes do not start: {why}; {hint}")


class Newborn(WorkerPlugin):
    """What each worker does first, also one that takes a dead one's place, however it was born."""

    def setup(self, worker: Any) -> None:
        """A terminal sends Ctrl-C to all of its processes; that it ends a study is for the driver to see to."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.freeze()  # to look through what was imported writes to every page of it, which forks share until then


class Broken(Exception):
    """What the runs of a stack came to, in a process that is not to be trusted with another."""


def _trained(client: Client, works: Sequence[Work], tell: Tell, ours: bool = False) -> Generator[tuple[Work, Came]]:
    """Feed a cluster: as many stacks at a time as it has threads, so that the order is ours."""
    left, running = deque(works), dict[Any, Work]()
    news: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    topic = f"harness-{uuid4()}"

    def heard(event: tuple[float, Any]) -> None:
        run_id, values = event[1]["run_id"], event[1]["record"]
        news.put(lambda: tell(run_id, EpochRecord(**values)))

    def hand_out() -> None:
        while left and len(running) < max(sum(client.nthreads().values()), 1):
            what = left.popleft()
            running[future := client.submit(_task, what, topic, ours, pure=False)] = what
            future.add_done_callback(lambda done: news.put(lambda: done))

    client.subscribe_topic(topic, heard)
    try:
        while left or running:
            hand_out()
            if (future := news.get()()) is None:
                continue
            if future.cancelled():
                raise EngineError("the scheduler is gone; start it and the same command again: it goes on from the checkpoints")
            what = running.pop(future)
            came: Came | None = None
            if (error := future.exception()) is None:
                came = future.result()
            elif isinstance(error, Broken):
                came = error.args[0]
            elif len(what.lanes) > 1:
                left.extendleft(replace(what, lanes=(lane,), rule=None) for lane in what.lanes)
            else:
                died = "four worker processes died training it: out of memory, or killed"
                came = {what.lanes[0].run_id: died if isinstance(error, KilledWorker) else _line(error)}
            hand_out()  # before anybody looks at what came, for that the worker need not wait
            if came is not None:
                yield what, came
    finally:
        with suppress(Exception):
            client.cancel(list(running))
            client.unsubscribe_topic(topic)


def _task(what: Work, topic: str, ours: bool) -> Came:
    """On a worker: train, tell the driver of each epoch, and stop when it has cancelled this or is gone."""
    me, key = get_worker(), thread_state.key

    def tell(run_id: str, done: EpochRecord) -> None:
        me.log_event(topic, {"run_id": run_id, "record": done.to_json()})
        task = me.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise KeyboardInterrupt

    try:
        came: Came = work(what, tell)
    except KeyboardInterrupt:
        return {}
    except Exception as error:  # the store cannot be reached from here, say
        came = {lane.run_id: _line(error) for lane in what.lanes}
    if ours and any(isinstance(why, str) for why in came.values()):
        me.loop.add_callback(_part, me)
        raise Broken(came)  # an error is sent at once, where a result would lie here until it is asked for
    return came


def _part(worker: Any) -> None:
    """Die when the time for the last words is over, and until then take no other task, which would fail here as well."""
    worker.loop.call_later(PARTING, os.kill, os.getpid(), signal.SIGKILL)
    worker.status = Status.paused  # this second, as it may want memory too


def _codes(configs: Sequence[RunConfig]) -> list[str]:
    """What two processes must share to compute the same bits."""
    vendor = processor("vendor_id") if current() == NATIVE else ""  # which products `sparse` takes, and MKL's kernels
    return [*sorted({code_digest(config) for config in configs}), torch.backends.cpu.get_cpu_capability(), vendor]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
