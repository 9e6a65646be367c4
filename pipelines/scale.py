"""How many workers train, and on what: the section `scale` of params.yaml, resolved for a cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping

from ganlib.config import ResolvedScale, ScaleConfig
from pipelines._stage import StageError
from pipelines.cluster import cluster_address, usable_resources

__all__ = ["await_workers", "check_resources", "gpu_slots", "resolve_scale", "resources_per_worker", "why_fewer"]


def gpu_slots(available: Mapping[str, float], gpus_per_worker: float) -> int:
    """How many workers the GPUs hold. A share is of one GPU: two GPUs hold two workers of 0.6, not three."""
    return int(available.get("GPU", 0)) * int(1 / gpus_per_worker + 1e-6)


def resolve_scale(scale: ScaleConfig, available: Mapping[str, float], possible: Collection[int]) -> ResolvedScale:
    """`scale` with numbers in place of `auto` and `[least, most]`, for a cluster with the resources `available`.

    `gpus_per_worker`: 1 if there are GPUs, or 1/k where k workers must share one, else 0. `num_workers`: as many as
    the GPUs hold, or 2 without GPUs; no more than there are cores for, and one of the `possible` numbers. Of
    `[least, most]` the most that the cluster holds. A number that a person has set stays, even if the cluster does not
    hold it: see `check_resources`. 0 counts as 1: the process that trains needs no less.
    """
    workers, share, gpus = scale.num_workers or 1, scale.gpus_per_worker, int(available.get("GPU", 0))
    if share == "auto":
        share = 0.0 if gpus == 0 else 1 / math.ceil(workers / gpus) if isinstance(workers, int) else 1.0
    if not isinstance(workers, int):
        least, most = (1, _worker_slots(share, available)) if workers == "auto" else workers
        held = int(available.get("CPU", 0) // scale.cpus_per_worker)
        if share:
            held = min(held, gpu_slots(available, share))
        workers = max((n for n in possible if least <= n <= min(most, held)), default=least)
    numbers = {"num_workers": workers, "gpus_per_worker": share}
    return ResolvedScale.model_validate({**scale.model_dump(), **numbers})


def _worker_slots(gpus_per_worker: float, available: Mapping[str, float]) -> int:
    """How many workers `auto` is for, if cores and batch allow."""
    return gpu_slots(available, gpus_per_worker) if gpus_per_worker else 2


def why_fewer(scale: ScaleConfig, available: Mapping[str, float], possible: Collection[int]) -> str:
    """Why `auto` takes fewer workers than it is for, in a line; empty if it does not."""
    found = resolve_scale(scale, available, possible)
    workers, slots = found.num_workers, _worker_slots(found.gpus_per_worker, available)
    if scale.num_workers != "auto" or workers >= slots:
        return ""
    divides = any(workers < n <= slots for n in possible)
    why = "there are cores for no more" if divides else "the batch does not divide into more"
    return f"scale.num_workers: auto is {workers}, not {slots}: {why}"


def check_resources(scale: ResolvedScale, key: str, available: Mapping[str, float]) -> None:
    """Raise StageError if the cluster can never hold as many workers as `scale.KEY` says: Ray would never end."""
    workers, share = getattr(scale, key), scale.gpus_per_worker
    fits = {
        "CPU": workers * scale.cpus_per_worker <= available.get("CPU", 0),
        "GPU": share == 0 or workers <= gpu_slots(available, share),
    }
    for kind, each in (("CPU", scale.cpus_per_worker), ("GPU", share)):
        if not fits[kind]:
            raise StageError(
                f"scale.{key}: {workers} workers x {each:g} {kind} asked for, the cluster has "
                f"{available.get(kind, 0):g}; lower it or scale.{kind.lower()}s_per_worker"
            )


def await_workers(scale: ScaleConfig, key: str, possible: Collection[int]) -> ResolvedScale:
    """`scale` with numbers, as soon as the cluster holds as many workers as `scale.KEY` says.

    A cluster that grows is asked to, and one that has lost a node may get it back: after `scale.wait_seconds` without,
    raises StageError. The one of this machine does not grow: it raises at once.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    deadline, asked = time.monotonic() + scale.wait_seconds, False
    while True:
        available = usable_resources(ray.cluster_resources())
        found = resolve_scale(scale, available, possible)
        try:
            check_resources(found, key, available)
            return found
        except StageError:
            if not cluster_address(scale) or time.monotonic() > deadline:
                raise
        if not asked:
            workers, each = getattr(found, key), resources_per_worker(found)
            print(f"scale.{key}: waiting for a cluster with room for {workers} workers of {each}", flush=True)
            request_resources(bundles=[each] * workers)
            asked = True
        time.sleep(2)


def resources_per_worker(scale: ResolvedScale) -> dict[str, float]:
    each = {"CPU": float(scale.cpus_per_worker)}
    return each | {"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else each
