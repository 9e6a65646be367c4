"""The routes of a service. It is an ASGI application of its own; Ray Serve runs it in each replica."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import prometheus_client
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipelines._stage import StageError
from pipelines.serve import formats, sampling, schemas
from pipelines.serve.batching import Batcher
from pipelines.serve.guards import Guard, Metrics, describe_problem, refused
from pipelines.serve.models import Model, Served, TooSlow
from pipelines.serve.sampling import Expired, Found, Job, Work
from pipelines.serve.settings import Settings, api_token
from pipelines.serve.training_data import TrainingData

__all__ = ["VERSION_HEADER", "api"]

VERSION_HEADER = "Ganlib-Model"
"""in every answer that a model made: which version it was; a folder's path as in an address"""
DISTANCES_HEADER = "Ganlib-Distances"
"""of training examples from a sample, in the order of these"""
PAGE = Path(__file__).parent / "page"

log = logging.getLogger("ray.serve")


class Service:
    """The models of one replica, and the work that it has accepted."""

    def __init__(self, settings: Settings):
        self.settings, self.metrics = settings, Metrics()
        roles = {"served": settings.model, "challenger": settings.challenger}
        self.models = {role: Model(uri, settings) for role, uri in roles.items() if uri is not None}
        kinds = {model.current.generator.spec.sample.kind for model in self.models.values()}  # type: ignore[attr-defined]
        if len(kinds) > 1:
            raise StageError(f"challenger: it is of another kind of data: {', '.join(sorted(kinds))}")
        self.training_data = None if settings.training_data is None else TrainingData(settings.training_data)
        self._tell_versions()
        self.encoding = ThreadPoolExecutor(2, "encoder")
        self.batcher = Batcher(self._run, self.most_samples(self.models["served"].current), settings.batch_wait_s)

    def served(self, role: schemas.Role) -> Served:
        if role not in self.models:
            raise HTTPException(422, "model: this service has no challenger")
        return self.models[role].current

    async def make_samples(self, served: Served, n: int, work: Work) -> NDArray[Any]:
        """Samples of a request, as stored, `[n, *stored]`. Raises HTTPException for what cannot be made."""
        made = await self.run_job(served, n, work)
        self.metrics.samples.labels(served.uri).inc(n)
        assert isinstance(made, np.ndarray)
        return made

    async def run_job(self, served: Served, n: int, work: Work) -> NDArray[Any] | Found:
        """The result of the work, in its turn. Raises HTTPException if it fails or is not done in time."""
        made: NDArray[Any] | Found | Exception = await self.batcher.submit(
            Job(served, n, work, time.monotonic() + self.settings.timeout_s)
        )
        match made:
            case Expired():
                raise HTTPException(429, f"it waited for {self.settings.timeout_s:g} s", {"Retry-After": "1"})
            case TooSlow():
                raise HTTPException(413, f"it takes longer than {self.settings.timeout_s:g} s: ask for less")
            case ValueError():
                raise HTTPException(422, str(made))
            case Exception():
                raise made
        return made

    def _run(self, jobs: Sequence[Job]) -> list[Any]:
        self.metrics.batch.observe(sum(job.n for job in jobs))
        return sampling.run(jobs, self.settings.timeout_s)

    async def answer(
        self,
        served: Served,
        made: NDArray[Any],
        wanted: schemas.Format | None,
        about: dict[str, Any],
        columns: int | None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        spec = served.generator.spec
        of_format = wanted or formats.formats(spec)[0]
        loop = asyncio.get_running_loop()
        metadata = {"model": served.uri, **about}
        content = await loop.run_in_executor(self.encoding, formats.encode, spec, made, of_format, metadata, columns)
        return Response(
            content, media_type=formats.MEDIA_TYPES[of_format], headers={**version_header(served), **(headers or {})}
        )

    async def answer_examples(self, served: Served, about: schemas.Answers, work: Work) -> Response:
        """The model's answers about examples: numbers as JSON, a picture or the like in a format of samples."""
        shapes, spec = served.answers, served.generator.spec
        if not shapes:
            raise HTTPException(422, "this model has no answers: it only makes samples")
        if about.answer is not None and about.answer not in shapes:
            raise HTTPException(422, f"answer: {about.answer!r} is none of this model's; known: {', '.join(shapes)}")
        self.check(served, about.format)
        like_sample = about.answer is not None and shapes[about.answer] == spec.shape
        if not like_sample and about.format not in (None, "json"):
            raise HTTPException(422, f"format: {about.format!r} is for answers that look like samples; others are JSON")
        found = await self.run_job(served, len(about.examples), work)
        assert isinstance(found, dict)
        if like_sample:
            assert about.answer is not None
            return await self.answer(served, found[about.answer], about.format, {"answer": about.answer}, None)
        names = [about.answer] if about.answer else [name for name in shapes if shapes[name] != spec.shape]
        content = {"model": served.uri, "answers": {name: formats.numbers(found[name]) for name in names}}
        return JSONResponse(content, headers=version_header(served))

    def check(self, served: Served, wanted: schemas.Format | None, **counts: int) -> None:
        """Raises HTTPException for a format that the data do not have, or more samples than a request gets."""
        known = formats.formats(served.generator.spec)
        if wanted is not None and wanted not in known:
            raise HTTPException(422, f"format: {wanted!r} is none of this model's; known: {', '.join(known)}")
        for name, count in counts.items():
            if count > (most := self.most_samples(served)):
                raise HTTPException(422, f"{name}: expected at most {most}, found {count}")
        if counts and served.generator.translates:
            raise HTTPException(422, "this model makes samples of files: POST /v1/translations")

    def most_samples(self, served: Served) -> int:
        """Of one request."""
        stored = served.generator.spec.parts["sample"].stored_bytes
        return max(1, min(self.settings.max_samples, self.settings.max_sample_bytes // stored))

    def described(self) -> dict[str, Any]:
        served = self.models["served"].current
        spec, generator = served.generator.spec, served.generator
        return {
            "model": served.uri,
            "alias": self.models["served"].uri,
            "challenger": self.models["challenger"].current.uri if "challenger" in self.models else None,
            "kind": spec.kind.name,
            "shown_as": formats.shown_as(spec),
            "formats": formats.formats(spec),
            "classes": spec.classes if generator.conditional else (),
            "attributes": spec.attributes if "attributes" in generator.conditioned_on else (),
            "given": spec.given,
            "answers": {
                name: "sample" if shape == spec.shape else "number" if shape == () else "numbers"
                for name, shape in served.answers.items()
            },
            "asked_by": formats.asked_by(spec),
            "neighbours": self.shows_neighbours(served),
            "where": spec.kind.where is not None and not generator.conditioned_on,
            "limits": {
                "samples": self.most_samples(served),
                "body_bytes": self.settings.max_body_bytes,
                "megapixels": self.settings.max_megapixels,
                "seconds": self.settings.timeout_s,
                "pending": self.settings.max_pending,
            },
        }

    def shows_neighbours(self, served: Served) -> bool:
        data, generator = self.training_data, served.generator
        return data is not None and not generator.translates and data.are_of(generator.spec)

    async def follow(self) -> None:
        """Follow aliases: check at intervals whether one has moved, without end."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.poll_s)
            for model in self.models.values():
                try:
                    # not in the thread of generators: the old version goes on answering while the new one is loaded
                    if await loop.run_in_executor(None, model.refresh):
                        log.info("%s: now %s", model.uri, model.current.uri)
                        self._tell_versions()
                except Exception as error:
                    self.metrics.failures.inc()
                    log.warning("%s: %s stays: %s", model.uri, model.current.uri, error)

    def _tell_versions(self) -> None:
        self.metrics.version.clear()
        for model in self.models.values():
            self.metrics.version.labels(model.current.uri).set(1)


def version_header(served: Served) -> dict[str, str]:
    return {VERSION_HEADER: quote(served.uri, safe="/:@")}


def api(settings: Settings) -> FastAPI:
    """The application, with its models loaded. Raises StageError where they cannot be."""
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()

    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": what, "content": {"application/json": {"schema": describe_problem()}}}
        for status, what in (
            (400, "Not text, or another Host than this server's."),
            (401, "No token, or another than the service's."),
            (413, "The body is too large, or the work takes too long."),
            (422, "No JSON, not understood, or not in this model; `error` says what."),
            (429, "Too many requests are waiting; try again after `Retry-After` seconds."),
        )
    }
    samples_of = {
        "description": f"Samples. The header {VERSION_HEADER} names the version that made them.",
        "content": {media.partition(";")[0]: {} for media in formats.MEDIA_TYPES.values()},
    }
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    of_file = {"requestBody": {"required": True, "content": binary}}
    app = FastAPI(
        title="ganlib",
        description="Samples of a registered generator.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts of other sites
        redoc_url=None,
        max_body_size=settings.max_body_bytes,
        responses=problems,
    )
    app.state.service = service
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)
    app.add_middleware(
        Guard,
        metrics=service.metrics,
        token=api_token(),
        max_body_bytes=settings.max_body_bytes,
        max_pending=settings.max_pending,
    )

    @app.exception_handler(RequestValidationError)
    async def handle_validation_error(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()[0]
        place = ".".join(str(part) for part in found["loc"] if part != "body")
        return refused(422, f"{place or 'the body'}: {found['msg']}")

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> Response:
        return refused(error.status_code, str(error.detail), error.headers)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """What is served: its version, classes, formats and limits."""
        return service.described()

    @app.post("/v1/samples", responses={200: samples_of}, response_class=Response)
    async def samples(body: schemas.Samples) -> Response:
        """Draw samples."""
        served = service.served(body.model)
        service.check(served, body.format, n=body.n)
        made = await service.make_samples(served, body.n, sampling.samples(body))
        labels = sampling.labels_of(served.generator, body)
        in_turn = labels is not None and body.label is None and len(served.generator.spec.classes) <= min(body.n, 32)
        columns = len(served.generator.spec.classes) if in_turn else None
        about = {"seed": body.seed, "first": body.first, **({} if labels is None else {"labels": labels})}
        return await service.answer(served, made, body.format, about, columns)

    @app.post("/v1/interpolations", responses={200: samples_of}, response_class=Response)
    async def interpolations(body: schemas.Interpolation) -> Response:
        """Draw samples on the way from one to another."""
        served = service.served(body.model)
        service.check(served, body.format, steps=body.steps)
        made = await service.make_samples(served, body.steps, sampling.interpolation(body))
        return await service.answer(served, made, body.format, {}, body.steps)

    @app.post("/v1/walks", responses={200: samples_of}, response_class=Response)
    async def walks(body: schemas.Walk) -> Response:
        """Draw samples along a principal direction of the model."""
        served = service.served(body.model)
        service.check(served, body.format, steps=body.steps)
        made = await service.make_samples(served, body.steps, sampling.walk(body, served))
        return await service.answer(served, made, body.format, {}, body.steps)

    @app.post("/v1/translations", responses={200: samples_of}, response_class=Response, openapi_extra=of_file)
    async def translations(
        request: Request,
        seed: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        format: schemas.Format | None = None,
        label: str | None = None,
        attribute: Annotated[list[str] | None, Query(max_length=1000, description="NAME=NUMBER each")] = None,
        model: schemas.Role = "served",
    ) -> Response:
        """Make a sample of a file, such as an image: its translation, into the domain of the label where there are
        several, or by the attributes that are to change, or its restoration. The body is the file."""
        served = service.served(model)
        service.check(served, format)
        file = await file_of(request)
        made = await service.make_samples(served, 1, sampling.translated(file, seed, label, attribute or ()))
        return await service.answer(served, made, format, {"seed": seed}, 1)

    @app.post("/v1/neighbours", responses={200: samples_of}, response_class=Response)
    async def neighbours(body: schemas.Neighbours) -> Response:
        """The training examples that a sample is nearest to, nearest first; `Ganlib-Distances` says how near."""
        served = service.served(body.model)
        service.check(served, body.format, n=body.n)
        if (data := service.training_data) is None:
            raise HTTPException(422, "neighbours: this service was started without training data")
        found = await service.run_job(served, 1, sampling.neighbours(body, data))
        assert isinstance(found, dict)
        distances = [float(f"{x:.4g}") for x in found["distances"]]
        about = {"space": data.space.name, "distances": distances}
        headers = {DISTANCES_HEADER: ", ".join(map(str, distances))}
        return await service.answer(served, found["examples"], body.format, about, body.n, headers)

    @app.post("/v1/answers", responses={200: samples_of}, response_class=Response)
    async def answers(body: schemas.Answers) -> Response:
        """Ask a model about examples that there are: how strange, how likely they are."""
        served = service.served(body.model)
        if len(body.examples) > (most := service.most_samples(served)):
            raise HTTPException(422, f"examples: expected at most {most}, found {len(body.examples)}")
        return await service.answer_examples(served, body, sampling.answers(body))

    @app.post("/v1/answers/file", responses={200: samples_of}, response_class=Response, openapi_extra=of_file)
    async def answers_of_file(
        request: Request,
        answer: Annotated[str | None, Query(max_length=200)] = None,
        label: Annotated[str | None, Query(max_length=200)] = None,
        format: schemas.Format | None = None,
        model: schemas.Role = "served",
    ) -> Response:
        """The same of one example, such as an image. The body is the file."""
        file = await file_of(request)
        body = schemas.Answers(examples=("the file",), answer=answer, label=label, format=format, model=model)
        return await service.answer_examples(service.served(model), body, sampling.answers_of_file(file, label))

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether it is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        """Whether it takes requests: models are loaded before it answers at all."""
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        text = prometheus_client.generate_latest(service.metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    for path, file in {
        "/": "index.html",
        "/page.css": "page.css",
        "/page.js": "page.js",
        "/favicon.svg": "favicon.svg",
    }.items():
        app.add_api_route(path, _file(PAGE / file), response_class=FileResponse, include_in_schema=False)
    return app


async def file_of(request: Request) -> bytes:
    """The body. Raises HTTPException where there is none."""
    if not (file := await request.body()):
        raise HTTPException(422, "the body: expected a file, found nothing")
    return file


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(path)

    return send
