"""The routes of `ganlib serve`, without Ray, for generators of every family; and the command itself."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from urllib.parse import unquote

import av
import httpx2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from specs import table_spec
from starlette.testclient import TestClient
from typer.testing import CliRunner
from zoo import FAMILIES, config, game_of, spec_of

from ganlib import registry, shards
from ganlib.export import load_generator, save_generator
from ganlib.noise import Noise
from pipelines._stage import StageError
from pipelines.cli import app
from pipelines.serve.api import VERSION_HEADER, api
from pipelines.serve.batching import Batcher
from pipelines.serve.directions import principal_directions
from pipelines.serve.formats import encode, formats
from pipelines.serve.models import TooSlow
from pipelines.serve.run import _local, replica_api
from pipelines.serve.sampling import Job
from pipelines.serve.settings import TOKEN, Settings
from pipelines.serve.training_data import TrainingData

HERE = "http://127.0.0.1"


def save(family, folder, **data):
    spec = spec_of(family, **data)
    game = game_of(family, spec)
    attributes = torch.tensor([[0.0, 1.0], [0.5, 0.5]])[:, : len(spec.attributes)] if spec.attributes else None
    others = game.modules_besides_generator if game.answers else {}
    save_generator(folder, game.generator, network=config(family), spec=spec, attributes=attributes, others=others)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save("mlp", tmp_path_factory.mktemp("mlp"))


@pytest.fixture
def client(folder):
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        yield client


def presented(generator, samples):
    spec = generator.spec
    return spec.kind.present(spec.sample, "sample", spec.kind.quantise(spec.sample, samples).numpy())


def same(found, expected):
    """Whether pictures differ by a level at most, which the rounding at another place of a batch may cost; whether
    others are equal."""
    if isinstance(expected, pd.DataFrame):
        rows = expected.to_dict("records")
        return found == [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows]
    if isinstance(expected, list):
        return found == expected
    return np.abs(np.asarray(found).astype(int) - expected.astype(int)).max() <= 1


def test_rows_as_json_are_what_is_presented():
    day = datetime.datetime(9999, 12, 31)
    rows = [{"mass": 3e-12 + i * 1e-13 / 7, "x": i / 7, "at": day if i else None} for i in range(200)]
    rows += [{"mass": 1.0, "x": None, "at": datetime.datetime(2020, 1, 1, 10, 0, 0, 123456)}]
    spec, stored = table_spec(rows)
    found = json.loads(encode(spec, stored, "json", {}))["samples"]
    assert found == [{**row, "at": None if row["at"] is None else row["at"].isoformat()} for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_served(family, tmp_path):
    folder = save(family, tmp_path)
    generator = load_generator(folder)
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        about = client.get("/v1/model").json()
        assert about["formats"] == list(formats(generator.spec))
        if about["given"]:
            return check_translation(client, generator, tmp_path)
        expected = presented(generator, generator.sample(7, seed=3)["sample"])
        answers = {
            form: client.post("/v1/samples", json={"n": 7, "seed": 3, "format": form}) for form in about["formats"]
        }
        assert {form: answer.status_code for form, answer in answers.items()} == dict.fromkeys(answers, 200)
        assert {answer.headers[VERSION_HEADER] for answer in answers.values()} == {folder}
        found = answers["json"].json()
        assert same(found["samples"], expected)
        if generator.conditional:
            assert found["labels"] == [generator.spec.classes[i % 3] for i in range(7)]
        assert Image.open(io.BytesIO(answers["png"].content)).size > (7, 7)
        if "npy" in answers:
            assert same(np.load(io.BytesIO(answers["npy"].content)), expected)
        if "csv" in answers:
            assert len([*csv.reader(io.StringIO(answers["csv"].text))]) == 8
        tail = client.post("/v1/samples", json={"n": 3, "first": 4, "seed": 3, "format": "json"}).json()
        assert same(
            tail["samples"],
            expected[4:]
            if isinstance(expected, list)
            else expected[4:].reset_index(drop=True)
            if isinstance(expected, pd.DataFrame)
            else expected[4:],
        )
        return None


def picture(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file


def film(frames):
    """Grey frames, without loss."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25, width=frames.shape[2], height=frames.shape[1], pix_fmt="gray")
        for frame in frames[..., 0]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode(None))
    return file


def check_translation(client, generator, tmp_path):
    (part,) = generator.spec.given
    *frames, channels, height, width = generator.spec.parts[part].shape
    pixels = np.random.default_rng(0).integers(0, 256, (*frames, height, width, channels), dtype=np.uint8)
    file = (film if frames else picture)(pixels)
    given = {part: generator.take(part, pixels[None])}
    changes = {"attribute": [f"{name}=0.5" for name in generator.spec.attributes]}
    asked = {"attributes": torch.tensor([0.5])} if generator.spec.attributes else {}
    expected = presented(generator, generator.sample(1, given=given, seed=3, **asked)["sample"])
    answer = client.post("/v1/translations", params={**changes, "seed": 3, "format": "npy"}, content=file.getvalue())
    assert same(np.load(io.BytesIO(answer.content)), expected)
    assert (
        client.post("/v1/translations", params=changes, content=file.getvalue()).headers["content-type"] == "image/png"
    )
    for wrong in (["size=1"], ["size"], ["age=nan", "size=1"], ["age=1", "age=1"]):
        assert client.post("/v1/translations", params={"attribute": wrong}, content=file.getvalue()).status_code == 422
    for body in (b"", b"no picture", file.getvalue()[:50]):
        assert client.post("/v1/translations", params=changes, content=body).status_code == 422
    assert "POST /v1/translations" in client.post("/v1/samples", json={}).json()["error"]
    if generator.takes_any_size:
        file = io.BytesIO()
        Image.new("L" if channels == 1 else "RGB", (21, 13)).save(file, "PNG")
        made = Image.open(io.BytesIO(client.post("/v1/translations", params=changes, content=file.getvalue()).content))
        factor = generator.spec.shape[1] // height
        assert made.size == (21 * factor, 13 * factor)
        Image.new("L", (1100, 1000)).save(file := io.BytesIO(), "PNG")
        assert "megapixels" in client.post("/v1/translations", params=changes, content=file.getvalue()).json()["error"]


@pytest.mark.parametrize("data", [{}, {"classes": ()}, {"classes": (), "attributes": ("age", "smile")}])
def test_a_path_leads_from_one_sample_to_the_other(data, tmp_path):
    folder = save("mlp", tmp_path, **data)
    told = {"label": "b"} if not data else {"attributes": {"age": 0.5, "smile": 1.0}} if "attributes" in data else {}
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        ends = {"start": {"seed": 1, "index": 2, **told}, "end": {"seed": 5, **told}}
        path = np.array(
            client.post("/v1/interpolations", json={**ends, "steps": 5, "format": "json"}).json()["samples"]
        )
        assert len(path) == 5
        for place, body in ((0, {"seed": 1, "first": 2}), (-1, {"seed": 5})):
            (end,) = client.post("/v1/samples", json={**body, **told, "format": "json"}).json()["samples"]
            assert np.abs(path[place] - np.array(end)).max() <= 1
        steps = np.abs(np.diff(path.astype(int), axis=0)).mean((1, 2, 3))
        assert (steps > 0).all()
        assert steps.max() < np.abs(path[0] - path[-1]).mean(), "small steps"


def test_samples_differ_more_along_principal_directions_than_along_others(tmp_path):
    """Each further one less, and the way leads through the sample."""
    folder = save("mlp", tmp_path)
    generator = load_generator(folder)
    directions = [one[0] for one in principal_directions(generator)]
    assert len(directions) == 4, "as many as inputs have dimensions"
    start = generator.game.ask({}, Noise(7, "sample", size=50), None)
    cond = torch.arange(50) % 3

    @torch.inference_mode()
    def change(direction):
        ends = (generator.game.generator(start + sign * 0.5 * direction, cond) for sign in (1, -1))
        return float((next(ends) - next(ends)).square().mean())

    rng = torch.Generator().manual_seed(0)
    others = [x / x.norm() * directions[0].norm() for x in torch.randn(20, 4, generator=rng)]
    assert change(directions[0]) > max(map(change, others))
    assert change(directions[0]) > change(directions[-1])
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        body = {"point": {"seed": 3, "index": 5, "label": "b"}, "steps": 5, "format": "json"}
        path = np.array(client.post("/v1/walks", json=body).json()["samples"])
        (middle,) = client.post("/v1/samples", json={"seed": 3, "first": 5, "label": "b", "format": "json"}).json()[
            "samples"
        ]
        assert np.abs(path[2] - np.array(middle)).max() <= 1
        assert (path[0] != path[4]).any()
        refused = client.post("/v1/walks", json={**body, "direction": 4})
        assert refused.json()["error"] == "direction: expected 0 to 3, found 4"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"n": 0}, "n: "),
        ({"n": 1025}, "n: expected at most 1024, found 1025"),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"first": 2_000_000}, "first: "),
        ({"label": "d"}, "label: 'd' is not a class; known: a, b, c"),
        ({"lable": "a"}, "unknown key 'lable' (did you mean 'label'?)"),
        ({"truncation": 0}, "truncation: "),
        ({"attributes": {"age": 1}}, "attributes: "),
        ({"where": ["age<3"]}, "where: "),
        ({"format": "csv"}, "format: 'csv' is none of this model's; known: png, npy, json"),
        ({"format": "exe"}, "format: "),
        ({"model": "challenger"}, "model: this service has no challenger"),
        ([], "the body: "),
    ],
)
def test_what_is_not_understood_is_one_line(client, body, why):
    answer = client.post("/v1/samples", json=body)
    assert answer.status_code == 422
    assert why in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_ends_of_two_classes_have_nothing_between(client):
    answer = client.post("/v1/interpolations", json={"start": {"label": "a"}, "end": {"label": "b"}})
    assert (answer.status_code, answer.json()["error"]) == (
        422,
        "start, end: they are of two classes; expected one label",
    )


def gathered(app, bodies):
    """The answers to requests that come at once."""

    async def ask():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=HERE) as client:
            return await asyncio.gather(*(client.post("/v1/samples", json=body) for body in bodies))

    return asyncio.run(ask())


def test_requests_that_share_a_pass_get_what_they_get_alone(folder):
    bodies = [{"n": n, "seed": seed, "label": label} for n in (1, 5) for seed in (0, 1) for label in ("a", None)]
    bodies = [{**body, "format": "npy"} for body in bodies] + [{"label": "none such"}]
    app = api(Settings(model=folder))
    *together, refused = gathered(app, bodies)
    metrics = app.state.service.metrics
    assert metrics.registry.get_sample_value("ganlib_batch_samples_count") == 1, "they shared one"
    assert refused.status_code == 422
    for body, answer in zip(bodies, together, strict=False):
        (alone,) = gathered(api(Settings(model=folder)), [body])
        assert same(np.load(io.BytesIO(answer.content)), np.load(io.BytesIO(alone.content))), body


def test_nothing_is_made_for_those_who_are_gone(folder):
    """A run holds as much as fits, and what comes while it lasts is for the next, unless whoever asked has left."""
    ran, may_end = [], threading.Event()

    def run(jobs):
        ran.append([job.n for job in jobs])
        may_end.wait(30)
        return [job.n for job in jobs]

    async def ask():
        batcher = Batcher(run, 10, 0)
        first = asyncio.create_task(batcher.submit(Job(None, 7, None, 0)))
        while not ran:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.submit(Job(None, n, None, 0))) for n in (4, 5, 6, 4)]
        await asyncio.sleep(0.01)
        others[1].cancel()
        may_end.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    found = asyncio.run(ask())
    assert ran == [[7], [4, 6], [4]]
    assert [one for one in found if isinstance(one, int)] == [7, 4, 6, 4]


def test_more_than_may_wait_are_refused_and_all_others_answered(folder):
    app = api(Settings(model=folder, max_pending=5))
    answers = gathered(app, [{"n": 9}] * 20)
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 15
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429} == {"1"}
    assert gathered(app, [{"n": 9}])[0].status_code == 200, "there is room again"


def test_work_is_bounded_in_time(folder):
    app = api(Settings(model=folder, timeout_s=1e-9))
    assert [answer.status_code for answer in gathered(app, [{"n": 9}])] == [429], "it waited too long"
    served = app.state.service.models["served"].current
    from pipelines.serve import sampling
    from pipelines.serve.schemas import Samples

    (made,) = sampling.run([sampling.Job(served, 9, sampling.samples(Samples(n=9)), time.monotonic() + 9)], 1e-9)
    assert isinstance(made, TooSlow)


def test_a_job_that_fails_takes_no_other_along(folder):
    from pipelines.serve import sampling
    from pipelines.serve.schemas import Samples

    def broken(generator):
        raise RuntimeError("a fault of ours")

    service = api(Settings(model=folder)).state.service
    served, end = service.models["served"].current, time.monotonic() + 30
    good = sampling.samples(Samples(n=2))
    one, failed, other = sampling.run([sampling.Job(served, 2, work, end) for work in (good, broken, good)], 30)
    assert len(one) == len(other) == 2
    assert isinstance(failed, RuntimeError)

    async def ask():
        return await asyncio.gather(
            *(service.run_job(served, 2, work) for work in (good, broken)), return_exceptions=True
        )

    made, error = asyncio.run(ask())
    assert len(made) == 2
    assert isinstance(error, RuntimeError), "no 4xx: it is not the request's fault"


def test_large_bodies_and_strange_hosts_are_refused(folder):
    with TestClient(api(Settings(model=folder, max_body_bytes=100)), base_url=HERE) as client:
        assert client.post("/v1/samples", content=b" " * 101).status_code == 413
        assert client.post("/v1/samples", content=(b" " * 10 for _ in range(11))).status_code == 413, (
            "of unknown length"
        )
        assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


def test_large_samples_come_in_small_numbers(folder):
    with TestClient(api(Settings(model=folder, max_sample_bytes=64 * 3)), base_url=HERE) as client:
        assert client.get("/v1/model").json()["limits"]["samples"] == 3
        assert client.post("/v1/samples", json={"n": 3}).status_code == 200
        for route, body in (("samples", {"n": 4}), ("interpolations", {"start": {}, "end": {}, "steps": 4})):
            answer = client.post(f"/v1/{route}", json=body)
            assert (answer.status_code, "expected at most 3, found 4" in answer.text) == (422, True)


def test_a_token_is_asked_for_where_one_is_set(folder, monkeypatch):
    monkeypatch.setenv(TOKEN, "hush")
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        for path in ("/v1/model", "/metrics", "/openapi.json"):
            for sent in ({}, {"authorization": "Bearer hus"}, {"authorization": "Basic hush"}):
                assert client.get(path, headers=sent).status_code == 401, path
            answer = client.get(path, headers={"authorization": "Bearer hush"})
            assert (answer.status_code, "hush" in answer.text) == (200, False)
        assert (
            client.get("/healthz").status_code
            == client.get("/readyz").status_code
            == client.get("/").status_code
            == 200
        )


def test_a_token_is_what_a_header_can_carry(folder, monkeypatch):
    monkeypatch.setenv(TOKEN, " hush\n")  # as of `kubectl create secret --from-file`
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        assert client.get("/v1/model", headers={"authorization": "Bearer hush"}).status_code == 200
        assert client.get("/v1/model").status_code == 401
    monkeypatch.setenv(TOKEN, "pssst, héhé")
    for start in (lambda: _local(Settings(model=folder), "127.0.0.1", 0), lambda: api(Settings(model=folder))):
        with pytest.raises(StageError, match=f"^{TOKEN}: expected only printable ASCII characters, found others$"):
            start()


def test_others_than_this_machine_need_a_token(folder, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(StageError, match=f"--host 0.0.0.0: .*{TOKEN}"):
        _local(Settings(model=folder), "0.0.0.0", 0)
    with pytest.raises(StageError, match=f"hosts: .*{TOKEN}"):
        replica_api(Settings(model=folder, hosts=("*",)))
    monkeypatch.setenv(TOKEN, "hush")
    settings = _local(Settings(model=folder), "0.0.0.0", 0)
    assert settings.hosts == ("*",)
    assert "hush" not in settings.model_dump_json()


def test_what_is_no_model_is_one_line(folder, store, tmp_path):
    for settings, why in (
        (Settings(model=str(tmp_path / "none")), "not a generator"),
        (Settings(model=folder, challenger="models:/none@champion"), "there is no such model"),
        (Settings(model="models:/none"), "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ):
        with pytest.raises(StageError, match=why):
            _local(settings, "127.0.0.1", 0)


def test_the_command_refuses_more_replicas_than_the_settings_allow(folder):
    (most,) = (limit.le for limit in Settings.model_fields["replicas"].metadata if hasattr(limit, "le"))
    done = CliRunner().invoke(app, ["serve", folder, "--replicas", str(most + 1)])
    assert done.exit_code == 2
    assert "--replicas" in done.stderr
    assert str(most) in done.stderr


def test_a_port_that_is_taken_is_one_line(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StageError, match=f"--port {port}: Address already in use"):
            _local(Settings(model=folder), "127.0.0.1", port)


def test_a_folder_may_have_any_name(tmp_path):
    folder = save("mlp", tmp_path / "Bilder 家")
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        answer = client.post("/v1/samples", json={})
        assert (answer.status_code, unquote(answer.headers[VERSION_HEADER])) == (200, folder)


def test_prometheus_sees_requests_samples_and_the_version(client, folder):
    client.post("/v1/samples", json={"n": 5})
    client.post("/v1/samples", json={"n": 0})
    text = client.get("/metrics").text
    assert 'ganlib_requests_total{path="/v1/samples",status="200"} 1.0' in text
    assert 'ganlib_requests_total{path="/v1/samples",status="422"} 1.0' in text
    assert f'ganlib_samples_total{{model="{folder}"}} 5.0' in text
    assert f'ganlib_model{{model="{folder}"}} 1.0' in text


def test_the_challenger_draws_from_the_same_seeds(folder, tmp_path):
    other = save("dcgan", tmp_path)
    with TestClient(api(Settings(model=folder, challenger=other)), base_url=HERE) as client:
        assert client.get("/v1/model").json()["challenger"] == other
        answers = [client.post("/v1/samples", json={"model": role}) for role in ("served", "challenger")]
        assert [answer.headers[VERSION_HEADER] for answer in answers] == [folder, other]
    with pytest.raises(StageError, match="another kind of data"):
        api(Settings(model=folder, challenger=save("ctgan", tmp_path / "rows")))


def test_a_new_version_is_picked_up_between_requests(store, train, project, monkeypatch):
    """No request fails, and each answer is wholly of the version that its header names."""
    from pipelines import model_registry, tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    expected, versions = {}, []
    for weights in (1, 2):
        train(weights, {})
        with tracking.run(store, f"key{weights}", "train") as run:
            made = model_registry.register_generator(
                run, project / "outputs/train/generator", "digits", str(weights), {}
            )
        versions.append(made)
        generator = load_generator(project / "outputs/train/generator")
        expected[made.uri] = presented(generator, generator.sample(20, seed=7)["sample"])
    first, second = versions
    model_registry.set_alias(store, first, "champion")
    seen, stop = [], threading.Event()
    with TestClient(api(Settings(model="models:/digits@champion", poll_s=0.05)), base_url=HERE) as client:

        def ask():
            while not stop.is_set():
                seen.append(client.post("/v1/samples", json={"n": 20, "seed": 7, "format": "npy"}))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            model_registry.set_alias(store, second, "champion")
            end = time.monotonic() + 60
            while time.monotonic() < end and not (seen and seen[-1].headers.get(VERSION_HEADER) == second.uri):
                time.sleep(0.02)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert {answer.status_code for answer in seen} == {200}
        assert {answer.headers[VERSION_HEADER] for answer in seen} == {first.uri, second.uri}
        for answer in seen:
            assert same(np.load(io.BytesIO(answer.content)), expected[answer.headers[VERSION_HEADER]])
        # the store is lost: the version that is there stays, and is told of as failures
        (project / "mlflow.db").unlink()
        failures = client.app.state.service.metrics.registry
        end = time.monotonic() + 60
        while time.monotonic() < end and not failures.get_sample_value("ganlib_refresh_failures_total"):
            time.sleep(0.02)
        assert failures.get_sample_value("ganlib_refresh_failures_total")
        assert client.post("/v1/samples", json={}).headers[VERSION_HEADER] == second.uri


@pytest.mark.pipeline
def test_the_command_serves_and_drains(folder):
    """Under SIGTERM what was accepted is answered, and the command ends with status 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "pipelines.cli", "serve", folder, "--port", str(port), "--max-pending", "500"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said = ""
        while address not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        statuses = []

        def ask():
            body = json.dumps({"n": 1000, "format": "json"}).encode()
            request = urllib.request.Request(f"{address}/v1/samples", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()
                statuses.append(answer.status)

        ask()
        threads = [threading.Thread(target=ask) for _ in range(30)]
        for thread in threads:
            thread.start()
        while len(statuses) < 3:  # some are answered, most are accepted
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert statuses == [200] * 31
        assert process.wait(60) == 0, process.stdout.read()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def pairs_of(generator):
    """Examples with a given part, and the answers about them."""
    rng, spec = np.random.default_rng(0), generator.spec
    stored = {name: rng.integers(0, 256, (4, *part.stored)).astype(part.dtype) for name, part in spec.parts.items()}
    shown = {name: spec.kind.present(spec.sample, name, one) for name, one in stored.items()}
    examples = [{name: of[i].tolist() for name, of in shown.items()} for i in range(4)]
    return examples, generator.answer({name: generator.take(name, of) for name, of in shown.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_answers_about_examples(family, tmp_path):
    folder = save(family, tmp_path)
    generator = load_generator(folder)
    spec, shapes = generator.spec, generator.answer_shapes()
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        told = client.get("/v1/model").json()
        assert set(told["answers"]) == set(shapes)
        if not shapes:
            refused = client.post("/v1/answers", json={"examples": ["x"]})
            assert (refused.status_code, "it only makes samples" in refused.json()["error"]) == (422, True)
            return
        if generator.translates:
            examples, expected = pairs_of(generator)
        else:
            drawn = client.post("/v1/samples", json={"n": 20, "seed": 2, "format": "json"}).json()["samples"]
            examples = [one for one in drawn if one != ""]  # there is nothing to be said of an empty line
            taken = generator.take("sample", pd.DataFrame(examples) if told["shown_as"] == "rows" else examples)
            expected = generator.answer({"sample": taken})
        found = client.post("/v1/answers", json={"examples": examples})
        assert found.headers[VERSION_HEADER] == folder
        numbers = found.json()["answers"]
        assert set(numbers) == {name for name, shape in shapes.items() if shape != spec.shape}
        for name, values in numbers.items():
            np.testing.assert_allclose(values, expected[name].numpy(), rtol=1e-5)
        for name in shapes.keys() - numbers.keys():
            shown = client.post("/v1/answers", json={"examples": examples, "answer": name, "format": "json"}).json()
            assert same(shown["samples"], presented(generator, expected[name]))
        one = next(iter(numbers))
        assert [*client.post("/v1/answers", json={"examples": examples, "answer": one}).json()["answers"]] == [one]
        for body, why in (
            ({"examples": [None]}, "examples: expected "),
            ({"examples": []}, "examples: "),
            ({"examples": examples, "answer": "no such"}, "answer: 'no such' is none of this model's; known: "),
            (
                {"examples": examples, "answer": one, "format": "png"},
                "format: 'png' is for answers that look like samples",
            ),
            ({"examples": [None] * 1025}, "examples: expected at most 1024, found 1025"),
        ):
            refused = client.post("/v1/answers", json=body)
            assert (refused.status_code, why in refused.json()["error"]) == (422, True), refused.text
        if told["asked_by"] == "json":
            return
        content = examples[0].encode() if told["asked_by"] == "lines" else picture_file(examples[0])
        found = client.post("/v1/answers/file", content=content).json()["answers"]
        np.testing.assert_allclose(found[one][0], numbers[one][0], rtol=1e-5)
        assert client.post("/v1/answers/file", content=b"").status_code == 422


def picture_file(pixels):
    file = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)[..., 0]).save(file, "PNG")
    return file.getvalue()


def test_training_examples_are_shown_nearest_first(training_data, folder, tmp_path):
    data = TrainingData(str(training_data))
    known = data.spec.kind.decode(
        data.spec.sample, "sample", shards.read(training_data / "prepared", "train")["sample"]
    )
    distances, rows = data.nearest(known[:3], 4)
    assert (distances[:, 0] < 1e-3 * distances[:, 1]).all(), "the nearest of a training example is itself"
    assert torch.equal(data.spec.kind.decode(data.spec.sample, "sample", rows[:, 0]), known[:3])
    game = registry.load("models", "mlp").build(config("mlp"), data.spec)
    save_generator(tmp_path, game.generator, network=config("mlp"), spec=data.spec)
    generator = load_generator(tmp_path)
    point = {"seed": 3, "index": 4, "label": "7"}
    with TestClient(api(Settings(model=str(tmp_path), training_data=str(training_data))), base_url=HERE) as client:
        assert client.get("/v1/model").json()["neighbours"]
        found = client.post("/v1/neighbours", json={"point": point, "n": 5, "format": "json"})
        distances = found.json()["distances"]
        assert found.headers["Ganlib-Distances"] == ", ".join(map(str, distances))
        assert distances == sorted(distances)
        made = generator.sample_rows([3], [4], label=torch.tensor([7]))
        expected, stored = data.nearest(made, 5)
        np.testing.assert_allclose(distances, expected[0].numpy(), rtol=1e-3)
        assert same(found.json()["samples"], data.spec.kind.present(data.spec.sample, "sample", stored[0].numpy()))
    with TestClient(api(Settings(model=folder, training_data=str(training_data))), base_url=HERE) as client:
        assert not client.get("/v1/model").json()["neighbours"], "it was trained on others"
        refused = client.post("/v1/neighbours", json={"point": {}})
        assert (refused.status_code, "are not those of this version" in refused.json()["error"]) == (422, True)
    with TestClient(api(Settings(model=folder)), base_url=HERE) as client:
        assert "without training data" in client.post("/v1/neighbours", json={"point": {}}).json()["error"]
    with pytest.raises(StageError, match="not the training data of a project"):
        _local(Settings(model=folder, training_data=str(tmp_path)), "127.0.0.1", 0)
