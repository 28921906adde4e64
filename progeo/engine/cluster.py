"""Workers on the machines of a Ray cluster, which may come and go while they work."""

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any

from progeo.engine.log import LOGGER
from progeo.printable import first_line

_MAX_LOSSES = 4
"""Number of times that a call may be lost, and workers in turn may fail to start, before it is an error."""
_AHEAD = 2
"""Number of calls that a worker has, one of which waits until it has finished the other."""
_LONGEST_S = 10.0
"""Longest time that a cluster may take to answer."""
_LOOK_S = 2.0
"""Longest time between two looks at which machines there are."""
_PATIENT_LOOKS = 15
"""Number of looks without any worker until that is said."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, unless this process is connected already.

    Args:
        address: address of the cluster; None takes that of `RAY_ADDRESS`, one that runs on this machine, or starts one.

    Raises:
        ValueError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("`engine` ray needs Ray: pip install 'progeo[ray]'.") from None
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if port.isdecimal():  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=_LONGEST_S).close()
        ray.init(address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"There is no Ray cluster at `ray_address` {address}: {first_line(error)}. Start one by "
            f"ray start --head, or omit the address for one of this machine alone."
        ) from None
    with suppress(ValueError):  # outside of the main thread
        signal.signal(signal.SIGTERM, terminated)  # Ray has put its own handler in place of it
    with redirect_stdout(sys.stderr):  # Ray prints there which machines are lost, among the results of a command
        try:
            yield
        finally:
            ray.shutdown()


def cores_per_worker(most: int) -> int:
    """Return how many cores each worker gets, so that every machine has place for one for each of its GPUs."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [int(each["CPU"] // max(1, each.get("GPU", 0))) for each in found if each.get("CPU")]
    return max(1, min([most, *shares]))


def run_on_cluster(
    make: Callable[..., Callable[..., Any]],
    *arguments: Any,
    calls: Iterator[tuple[Any, ...]],
    num_calls: int,
    num_cores: int,
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Call a function on the workers of a cluster; yield each call and its result, in the order of their ends.

    There are as many workers as the machines have room for, each on a GPU if the cluster has any, and more when
    machines join. A call whose machine is lost is made again by another worker.

    Args:
        make: makes the function, once for each worker; can be imported on all machines.
        arguments: arguments of `make`, each of which is sent to a machine once.
        calls: arguments of each call, asked for when a worker can take them.
        num_calls: maximum number of calls.
        num_cores: cores of each worker.

    Raises:
        ValueError: what cannot be sent, no worker can be started, or what the function raises.
        OSError: a call was lost several times, or what the function raises.
    """
    import ray

    num_gpus = 1 if ray.cluster_resources().get("GPU") else 0
    pool = _Pool(_sent(make, arguments), num_cores, num_gpus, max_workers=num_calls)
    try:
        yield from pool.run(map(_Call, calls))
    finally:
        pool.close()


def _sent(make: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
    import ray

    try:
        return [ray.put(each) for each in (make, *arguments)]
    except Exception as error:  # pickling calls code of others
        raise ValueError(f"This cannot be sent to a Ray cluster: {first_line(error)}.") from error


class _Worker:
    """Runs on a machine of the cluster."""

    def __init__(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        self.function = make(*arguments)

    def start(self) -> None:
        """Do nothing, which ends once the worker has started."""

    def call(self, *arguments: Any) -> Any:
        """Call the function."""
        return self.function(*arguments)


@dataclass
class _Call:
    arguments: tuple[Any, ...]
    losses: int = 0
    """Number of workers that were lost with it."""


@dataclass
class _Pool:
    """Workers, and the calls that they have."""

    made_of: list[Any]
    num_cores: int
    num_gpus: int
    max_workers: int
    starting: dict[Any, Any] = field(default_factory=dict)
    """Workers by the reference to their start."""
    workers: dict[Any, int] = field(default_factory=dict)
    """Workers that have started, with the number of their calls."""
    calls: dict[Any, tuple[Any, _Call]] = field(default_factory=dict)
    """Workers and their calls by the reference to the result."""
    lost: deque[_Call] = field(default_factory=deque)
    """Calls to be made again."""
    failures: int = 0
    """Workers in turn that could not be started."""
    reason: str = ""
    """Why the last of them could not."""
    looks: int = 0
    """Looks at the machines while no worker had started."""

    def run(self, calls: Iterator[_Call]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yield the arguments and the result of each call."""
        import ray

        call = next(calls, None)
        while call is not None or self.calls:
            free = [worker for worker, count in self.workers.items() if count < _AHEAD]
            if call is not None and free:
                worker = min(free, key=self.workers.__getitem__)
                self.workers[worker] += 1
                self.calls[worker.call.remote(*call.arguments)] = worker, call
            else:
                if call is not None:
                    self._start_workers()
                done, _ = ray.wait([*self.starting, *self.calls], timeout=_LOOK_S)
                self._count_look()
                for reference in done:
                    if reference in self.starting:
                        self._see_start(reference)
                    elif reference in self.calls:  # not lost with another call of its worker just now
                        yield from self._results(reference)
                if call is not None:
                    continue
            call = self.lost.popleft() if self.lost else next(calls, None)

    def close(self) -> None:
        """End all workers."""
        import ray

        for worker in (*self.workers, *self.starting.values()):
            ray.kill(worker)

    def _count_look(self) -> None:
        self.looks += not self.workers
        if self.looks == _PATIENT_LOOKS and not self.workers:
            LOGGER.warning(
                "no machine of the Ray cluster has had room for a worker with %d cores: waiting for one", self.num_cores
            )

    def _start_workers(self) -> None:
        """Start workers until the machines are full and one waits for a machine to join, or to be started for it."""
        import ray

        if self.failures >= _MAX_LOSSES:
            if not self.workers:
                raise ValueError(f"No worker of the Ray cluster could be started: {self.reason}")
            return
        found = ray.cluster_resources()
        room = found.get("CPU", 0) // self.num_cores
        if self.num_gpus:
            room = min(room, found.get("GPU", 0) // self.num_gpus)
        while len(self.workers) + len(self.starting) < min(room + 1, self.max_workers):
            options = {"num_cpus": self.num_cores, "num_gpus": self.num_gpus, "max_restarts": 0, "max_task_retries": 0}
            worker: Any = ray.remote(_Worker).options(**options).remote(*self.made_of)
            self.starting[worker.start.remote()] = worker

    def _see_start(self, reference: Any) -> None:
        import ray

        worker = self.starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self.failures += 1
            self.reason = str(error).strip().splitlines()[-1]
            LOGGER.warning("a worker of the cluster could not be started: %s", self.reason)
        else:
            self.failures = 0
            self.workers[worker] = 0

    def _results(self, reference: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yield the arguments and the result of a call; nothing if it was lost with its machine."""
        import ray

        worker, call = self.calls[reference]
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # raised by the function
            raise error.cause or error from None
        except ray.exceptions.RayError as error:
            self._lose(worker, error)
        else:
            del self.calls[reference]
            self.workers[worker] -= 1
            yield call.arguments, result

    def _lose(self, worker: Any, error: Exception) -> None:
        """Take back the calls of a worker that was lost."""
        import ray

        del self.workers[worker]
        ray.kill(worker)
        LOGGER.warning("a worker of the cluster was lost: another makes its files (%s)", type(error).__name__)
        for reference, call in [
            (each, call) for each, (its_worker, call) in self.calls.items() if its_worker == worker
        ]:
            del self.calls[reference]
            call.losses += 1
            if call.losses == _MAX_LOSSES:
                raise OSError(f"{_MAX_LOSSES} workers of the Ray cluster were lost with the same work: {error}")
            self.lost.append(call)
