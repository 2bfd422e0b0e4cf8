"""The machines: a cluster to join or to start, what a worker takes of them, and how many there is room for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.volume_cache import num_cores
from ..errors import CaseError
from ..options import number, whole_number
from ..workflow import bundle_root
from .worker import CaseWorker

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["Machines"]

_JOINING_S = 600.0
"""Seconds in which a machine with room for a worker may join a cluster that has none, as one that grows on demand."""


@dataclass(frozen=True)
class Machines:
    """What is asked of a Ray cluster.

    Attributes:
        cluster: auto, an address such as ray://HOST:PORT, or a number of workers on this machine.
        workers: workers at most; None for as many as there is room for.
        cpus: cores of a worker, None for a share of this machine's, or one of a cluster's.
        gpus: of a worker, or its part of one; None for a share of this machine's, or one of a cluster's that has some.
    """

    cluster: str | int = "auto"
    workers: int | None = None
    cpus: int | None = None
    gpus: float | None = None

    def check(self) -> None:
        """Refuse what cannot be before anything is done.

        Raises:
            CaseError: a number that makes no sense, or Ray is not installed.
        """
        if self.here is not None:
            whole_number("cluster", self.here)
        for name, value in (("workers", self.workers), ("cpus", self.cpus)):
            if value is not None:
                whole_number(name, value)
        if self.gpus is not None and not float(number("gpus", self.gpus)).is_integer() and self.gpus > 1:
            raise CaseError(f"gpus is {self.gpus}; use a part of one GPU, such as 0.5, or a whole number.")
        _ray()

    @property
    def here(self) -> int | None:
        """Workers on this machine alone; None for those of a cluster."""
        return int(self.cluster) if str(self.cluster).strip().isdigit() else None

    @contextmanager
    def pool(self, arguments: Sequence[Any], retries: int) -> Iterator[Pool]:
        """Gives the workers.

        Args:
            arguments: of `CaseWorker`.
            retries: see `Pool`.

        Raises:
            CaseError: there is no cluster at that address.
        """
        from .pool import Pool

        with self._connected() as ray:
            cpus, gpus = self._share(ray.cluster_resources())
            threads = {"OMP_NUM_THREADS": str(cpus), "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(cpus)}
            path = os.pathsep.join([bundle_root(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
            variables = {**threads, "PYTHONPATH": path}
            worker = ray.remote(CaseWorker).options(
                num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": variables}, max_restarts=0
            )
            most = self.workers or self.here or math.inf
            pool = Pool(
                lambda: worker.remote(*arguments),
                lambda: min(most, _room(ray.nodes(), cpus, gpus)),
                retries,
                lacking=lambda: _lacking(ray.nodes(), cpus, gpus),
                joining_s=_JOINING_S if self.here is None else 0.0,
            )
            try:
                yield pool
            finally:
                pool.close()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Gives Ray, connected to the cluster for as long as it is needed; a connection that is there is used."""
        ray = _ray()
        if ray.is_initialized():
            yield ray
            return
        try:
            if self.here is None:
                ray.init(address=str(self.cluster))
            else:
                cores = max(num_cores(), self.here * (self.cpus or 1))
                ray.init(address="local", num_cpus=cores, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise CaseError(
                f"There is no Ray cluster at {self.cluster} ({' '.join(str(error).split())[:120]}); start one with "
                "ray start --head, or give a number of workers on this machine."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()

    def _share(self, resources: dict[str, float]) -> tuple[int, float]:
        """Cores and GPUs of a worker."""
        num_gpus = resources.get("GPU", 0.0)
        if self.here is None:
            cpus, gpus = 1, min(1.0, num_gpus)
        else:
            cpus, gpus = max(1, int(resources["CPU"]) // self.here), min(1.0, num_gpus / self.here)
        return self.cpus or cpus, gpus if self.gpus is None else float(self.gpus)


def _ray() -> Any:
    """The module.

    Raises:
        CaseError: it is not installed.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # the same warning of two cases is two warnings
    try:
        import ray
        import ray.actor  # a folder called ray, such as /tmp/ray of Ray's own, would be a package, too
    except ImportError as error:
        raise CaseError(
            "Ray is not installed here; pip install 'brain-ct-to-mri[cluster]' or -r requirements-ray.txt"
        ) from error
    return ray


def _lacking(nodes: Sequence[dict[str, Any]], cpus: int, gpus: float) -> str:
    """What a worker asks for, and what the largest machine has, for when it fits on none."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    most = max(((one.get("GPU", 0.0), one.get("CPU", 0.0)) for one in alive), default=(0.0, 0.0))
    return (
        f"A worker of {cpus} cores and {gpus:g} GPUs fits on no machine of the cluster; the largest has "
        f"{most[1]:g} cores and {most[0]:g} GPUs"
    )


def _room(nodes: Sequence[dict[str, Any]], cpus: int, gpus: float) -> int:
    """How many workers the machines that are alive have room for."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    by_cpus = [node.get("CPU", 0.0) / cpus for node in alive]
    by_gpus = [node.get("GPU", 0.0) / gpus if gpus else math.inf for node in alive]
    return sum(math.floor(min(both) + 1e-6) for both in zip(by_cpus, by_gpus, strict=True))
