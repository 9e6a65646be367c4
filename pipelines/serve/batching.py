"""Requests that come while a forward pass runs share the next one.

`ray.serve.batch` does the same, but only within a replica of Ray: the routes are an application of their own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.serve.sampling import Job

__all__ = ["Batcher"]


class Batcher:
    """Runs jobs in one thread, as many together as `most` samples hold: two forward passes at once would fight for
    cores, or for the memory of the GPU."""

    def __init__(self, run: Callable[[Sequence[Job]], list[Any]], most: int, wait_s: float):
        self._run, self._most, self._wait_s = run, most, wait_s
        self._waiting: deque[tuple[Job, asyncio.Future[Any]]] = deque()
        self._thread = ThreadPoolExecutor(1, "generator")
        self._runs: asyncio.Task[None] | None = None

    async def submit(self, job: Job) -> Any:
        """What `run` returns for it."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, done))
        if self._runs is None or self._runs.done():
            self._runs = asyncio.create_task(self._run_all())
        return await done

    async def _run_all(self) -> None:
        await asyncio.sleep(self._wait_s)  # for others that come at the same time
        while batch := self._next():
            try:
                jobs = [job for job, _ in batch]
                made = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, jobs)
                for (_, done), result in zip(batch, made, strict=True):
                    if not done.done():  # the client may be gone
                        done.set_result(result)
            except Exception as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)

    def _next(self) -> list[tuple[Job, asyncio.Future[Any]]]:
        batch, total = list[tuple[Job, asyncio.Future[Any]]](), 0
        while self._waiting:
            job, done = self._waiting[0]
            if batch and total + job.n > self._most:
                break
            self._waiting.popleft()
            if not done.done():  # the client may be gone
                batch.append((job, done))
                total += job.n
        return batch
