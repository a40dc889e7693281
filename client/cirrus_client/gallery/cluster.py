"""Embed a gallery on a Ray cluster: actors that each own an engine embed units, and the driver commits what comes back.

A unit is a shard, or a part of the source like a tar. A worker that dies costs the shard that it was embedding: the
unit goes to another worker, without the shards that have come. A worker gets a unit once it has answered, so no unit
waits for a worker that has no room on the cluster yet, or whose machine is gone. Nothing is kept on the cluster, so a
driver that was killed is started again and resumes from the gallery. Only the driver writes the gallery. The bundle and
the images must be reachable from all machines under the same names.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cirrus_client.encoders.protocol import Encoder
from cirrus_client.errors import ClusterError
from cirrus_client.extras import need
from cirrus_client.gallery.source import AnySource
from cirrus_client.gallery.stream import Recollection
from cirrus_client.gallery.work import DoneShard, OpenedPart, Tools, Unit, Workforce, WorkOptions, given_up, work
from cirrus_client.memory import keep_freed_memory

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_CORES = 8
"""Cores of a worker where nothing else was asked for: engines gain little from more."""

_TRIES = 10
_PARTS_AT_ONCE = 2
"""Parts of a worker: it opens one, which may take a download, while it embeds the other."""

_KNOCK_S = 10

MakeTools = Callable[[int | None], tuple[Encoder, Recollection | None]]
"""Returns what a worker embeds with. Argument: CPU threads of the engine, None if it runs on a GPU."""


@dataclass(frozen=True)
class Cluster:
    """The workers that a Ray cluster has room for. Connect with `connected`.

    gpus: GPUs per worker, 0 or 1. cores: CPU cores per worker. workers: number of workers.
    """

    gpus: int
    cores: int
    workers: int

    @property
    def threads(self) -> int | None:
        """CPU threads of a worker's engine, None if it runs on a GPU."""
        return None if self.gpus else self.cores

    def ask(self, question: Callable[[int | None], T]) -> T:
        """Return the answer of a function that is called where a worker would be, with `threads`.

        Raises what the function raises, and ClusterError if its process dies, as one without enough memory does.
        """
        ray = need("ray", "--ray")
        asked = ray.remote(_answer).options(num_cpus=self.cores, num_gpus=self.gpus)
        try:
            answer: T = ray.get(asked.remote(question, self.threads))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except _deaths(ray) as error:
            raise _none_left(ray, error) from None
        return answer

    def workforce(self, make_tools: MakeTools) -> Workforce:
        """Return what embeds on this cluster. make_tools: is called in each worker, and must be picklable."""

        def run(
            source: AnySource, units: Sequence[Unit], options: WorkOptions, on_done: Callable[[int], object]
        ) -> Iterator[OpenedPart | DoneShard]:
            ray = need("ray", "--ray")
            at_once = _PARTS_AT_ONCE if any(unit.part is not None for unit in units) else 1
            actor = ray.remote(_Worker).options(
                num_cpus=self.cores,
                num_gpus=self.gpus,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=at_once,
            )
            job = _Job(ray.put((source, make_tools, options)))
            workers = [actor.remote(self.cores, self.threads) for _ in range(min(self.workers, len(units)))]
            try:
                yield from _spread(ray, job, workers * at_once, units, options, on_done)
            finally:
                for worker in workers:
                    ray.kill(worker)

        return run


@contextmanager
def connected(address: str, *, cores: int | None = None) -> Iterator[Cluster]:
    """Connect to a Ray cluster. address: `auto` for the one of this machine, or `host:port`.

    A worker gets a GPU where the cluster has any, and `cores` CPU cores. None takes the cores that there are per GPU;
    without GPUs MAX_CORES, or all of the smallest machine. Raises ClusterError if there is no cluster, or no machine
    has room for a worker, and MissingPackage if Ray is not installed.
    """
    ray = need("ray", "--ray")
    was_connected = ray.is_initialized()
    if not was_connected:
        answers = False
        try:
            answers = _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, ValueError, RuntimeError) as error:
            found = (
                f"something answers there that Ray can't use ({error}): a cluster may ask for a token, which "
                f"RAY_AUTH_MODE=token sends, or have another version than Ray {ray.__version__} here"
                if answers
                else f"there is no cluster ({error}); start one with `ray start --head`"
            )
            raise ClusterError(f"--ray {address}: {found}", address=address) from None
    try:
        yield _room(ray.nodes(), address, cores)
    finally:
        if not was_connected:
            ray.shutdown()


def _knock(address: str) -> bool:
    """Return whether an address is a `host:port` at which something listens.

    Raises OSError if nothing does: Ray would try for minutes.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return False
    socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    return True


def _room(nodes: Sequence[dict[str, Any]], address: str, cores: int | None) -> Cluster:
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [(int(found.get("CPU", 0)), int(found.get("GPU", 0))) for found in resources]
    with_gpu = [(cpus, gpus) for cpus, gpus in machines if gpus]
    if with_gpu:
        machines = with_gpu
        wanted = cores or max(1, min(cpus // gpus for cpus, gpus in machines))
        workers = sum(min(gpus, cpus // wanted) for cpus, gpus in machines)
    else:
        wanted = cores or min(MAX_CORES, *(cpus for cpus, _ in machines if cpus), MAX_CORES)
        workers = sum(cpus // wanted for cpus, _ in machines)
    if not workers:
        raise ClusterError(
            f"--ray {address}: no machine{' with a GPU' if with_gpu else ''} has {wanted} cores for a worker, they "
            f"have {', '.join(str(cpus) for cpus, _ in machines)}; give fewer as --ray-cores",
            address=address,
        )
    return Cluster(int(bool(with_gpu)), wanted, workers)


def _answer(question: Callable[[int | None], T], threads: int | None) -> T:
    return question(threads)


@dataclass(frozen=True)
class _Job:
    """What all workers have in common, kept by Ray as long as the driver has this.

    It is no argument with which workers are made. Of these, Ray lets go of large ones, and starts no worker anew then.
    """

    kept: Any

    def read(self) -> tuple[AnySource, MakeTools, WorkOptions]:
        """Return the job. Raises ClusterError if the source, or what makes the tools, can't be read on this machine."""
        ray = need("ray", "--ray")
        try:
            job: tuple[AnySource, MakeTools, WorkOptions] = ray.get(self.kept)
        except ray.exceptions.RaySystemError as error:
            raise ClusterError(
                f"the source can't be used on {socket.gethostname()}: {_last_line(error)}", address=_address(ray)
            ) from None
        return job


class _Worker:
    """A Ray actor that embeds units with an engine of its own."""

    def __init__(self, cores: int, threads: int | None) -> None:
        keep_freed_memory()
        self._cores, self._threads = cores, threads
        self._opening = threading.Lock()
        self._opened: tuple[AnySource, WorkOptions, Tools] | None = None

    def answer(self, job: _Job) -> None:
        """Show that the worker runs, and can do the job."""
        self._open(job)

    def do(self, job: _Job, unit: Unit) -> Iterator[OpenedPart | DoneShard]:
        source, options, tools = self._open(job)
        yield from work(source, unit, tools, options)

    def _open(self, job: _Job) -> tuple[AnySource, WorkOptions, Tools]:
        """Return what is needed to do the job. The first call makes it, so that the driver gets the errors."""
        with self._opening:
            if self._opened is None:
                source, make_tools, options = job.read()
                encoder, recollection = make_tools(self._threads)
                self._opened = source, options, Tools(encoder, recollection, workers=self._cores, turn=threading.Lock())
            return self._opened


@dataclass
class _Task:
    """A unit, and what has come of it."""

    unit: Unit
    tries: int = 0
    opened: OpenedPart | None = None
    done: set[str] = field(default_factory=set)

    def rest(self) -> Unit:
        return replace(self.unit, done=frozenset(self.done))


def _spread(
    ray: Any,
    job: _Job,
    workers: Sequence[Any],
    units: Sequence[Unit],
    options: WorkOptions,
    on_done: Callable[[int], object],
) -> Iterator[OpenedPart | DoneShard]:
    """Give every worker that runs one unit at a time, or as many as it is named, and yield what comes back.

    Raises what a worker raises, and ClusterError if no worker is left that Ray could start anew.
    """
    waiting = deque(_Task(unit) for unit in units)
    asked = {worker.answer.remote(job): (worker, 1) for worker in workers}
    idle: deque[Any] = deque()
    running: dict[Any, tuple[Any, _Task]] = {}
    while waiting or running:
        while waiting and idle:
            worker, task = idle.popleft(), waiting.popleft()
            task.tries += 1
            running[worker.do.options(num_returns="streaming").remote(job, task.rest())] = worker, task
        (ready,), _ = ray.wait([*asked, *running], num_returns=1, fetch_local=False)
        if ready in asked:
            worker, tries = asked.pop(ready)
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except _deaths(ray) as error:
                if tries < _TRIES:
                    asked[worker.answer.remote(job)] = worker, tries + 1
                elif not (asked or idle or running):
                    raise _none_left(ray, error) from None
            else:
                idle.append(worker)
            continue
        worker, task = running[ready]
        try:
            result = ray.get(next(ready))
        except StopIteration:
            del running[ready]
            idle.append(worker)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except _deaths(ray):
            del running[ready]
            asked[worker.answer.remote(job)] = worker, 1  # Ray starts it anew
            if task.tries < _TRIES:
                log.warning("a worker died; what it was embedding goes to another one")
                waiting.append(task)
            else:
                yield from given_up(task.rest(), f"{_TRIES} workers died of it", options)
        else:
            yield from _new(task, result, options, on_done)


def _deaths(ray: Any) -> tuple[type[Exception], ...]:
    """Return what Ray raises if a worker has died, and what it returned with it."""
    found = ray.exceptions
    return found.RayActorError, found.WorkerCrashedError, found.ObjectLostError, found.OutOfMemoryError


def _none_left(ray: Any, error: Exception) -> ClusterError:
    return ClusterError(
        f"no worker can be started on the cluster any more ({_last_line(error)}); mend that, and run the same command "
        "again",
        address=_address(ray),
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _address(ray: Any) -> str:
    return str(ray.get_runtime_context().gcs_address)


def _new(
    task: _Task, result: OpenedPart | DoneShard, options: WorkOptions, on_done: Callable[[int], object]
) -> Iterator[OpenedPart | DoneShard]:
    """Yield what is new in a result. A part that has changed while a worker died is left to the next run."""
    if isinstance(result, OpenedPart):
        earlier, task.opened = task.opened, result
        if earlier is None:
            yield result
        elif earlier.plan != result.plan:
            yield from given_up(task.unit, "it has changed while it was embedded", options)
            task.done |= {shard.id for shard in result.plan.pending}
    elif result.shard.id not in task.done:
        task.done.add(result.shard.id)
        on_done(len(result.shard.files))
        yield result
