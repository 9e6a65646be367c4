"""`ganlib serve` against `mlflow models serve`: one model, one machine, one run. docs/serving.md has the figures.

    python tests/bench/serving.py outputs/train/generator

16 clients ask, each as soon as it is answered, for `--samples` samples of a seed of its own, first of one server, then
of the other. Then requests for the last number of samples come at four times the rate that the service managed, whether
or not others are answered; and last the alias moves to another version under the load of the 16. Servers and clients
share the machine; the server that is not measured is idle.

With `--floor` two others are measured for one sample a request: `empty` is Ray Serve, started as the service is, with a
route that answers 912 bytes and makes nothing, which is what HTTP by Ray Serve costs at the least; `alone` is the
service's application by uvicorn, without Ray. CPU milliseconds are of a server's processes, a request: where other work
takes the cores, they say more than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import io
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import torch
import uvicorn
from safetensors.torch import load_file, save_file

from ganlib.config import TrackingConfig
from ganlib.export import load_generator
from pipelines import model_registry, tracking
from pipelines.cluster import start_local
from pipelines.serve.api import api
from pipelines.serve.run import RAY_SETTINGS
from pipelines.serve.settings import Settings

CLIENTS = 16


@dataclasses.dataclass
class Load:
    """What clients got: statuses, versions, and the seconds that answers of 200 took."""

    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    versions: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)
    bodies: list[tuple[str, int, bytes]] = dataclasses.field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    """of the server's processes"""

    def line(self, n: int) -> str:
        p50, p99 = np.quantile(self.seconds, [0.5, 0.99]) * 1e3 if self.seconds else (np.nan, np.nan)
        rate = len(self.seconds) / self.wall_s
        figures = f"{rate * n:9.0f} samples/s {rate:7.1f} requests/s   p50 {p50:7.1f} ms   p99 {p99:7.1f} ms"
        cpu = f"   CPU {self.cpu_s * 1e3 / max(1, len(self.seconds)):6.2f} ms" if self.cpu_s else ""
        return f"{figures}{cpu}   {dict(self.statuses)}"


async def ask(session: aiohttp.ClientSession, url: str, body: dict, load: Load, keep: bool = False) -> None:
    start = time.perf_counter()
    async with session.post(url, json=body) as answer:
        content = await answer.read()
        load.statuses[answer.status] += 1
        if answer.status == 200:
            load.seconds.append(time.perf_counter() - start)
            version = answer.headers.get("Ganlib-Model", "")
            load.versions[version] += 1
            if keep:
                load.bodies.append((version, body["seed"], content))


async def closed(url: str, body, seconds: float, keep: bool = False, meanwhile=None, pid: int | None = None) -> Load:
    """CLIENTS ask one after the other, for so many seconds; `body(seed)` is what they send. `pid` is the server's."""
    load, end, cpu_s = Load(), time.monotonic() + seconds, cpu_seconds(pid)

    async def client(number: int) -> None:
        turn = 0
        while time.monotonic() < end:
            await ask(session, url, body(number * 100_000 + turn), load, keep)
            turn += 1

    start = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        also = [asyncio.to_thread(meanwhile)] if meanwhile else []
        await asyncio.gather(*map(client, range(CLIENTS)), *also)
    load.wall_s, load.cpu_s = time.perf_counter() - start, cpu_seconds(pid) - cpu_s
    return load


def cpu_seconds(pid: int | None) -> float:
    """Of a process and all that it started and that live."""
    if pid is None:
        return 0.0
    root, total = psutil.Process(pid), 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


async def opened(url: str, body, rate: float, seconds: float) -> Load:
    """Requests come at a rate, answered or not."""
    load, tasks, start = Load(), [], time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(session, url, body(number), load)))
        await asyncio.gather(*tasks)
    load.wall_s = time.perf_counter() - start
    return load


@contextlib.contextmanager
def server(*command: str, log: Path) -> Iterator[int]:
    """The ID of its process."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def wait_for(url: str) -> float:
    start = time.monotonic()
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < start + 300:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return time.monotonic() - start
            await asyncio.sleep(0.2)
    raise SystemExit(f"{url} does not answer")


def register(folder: Path, scratch: Path, store: tracking.Store) -> list[model_registry.Version]:
    """Two versions: the generator, and the same with its weights halved."""
    other = Path(shutil.copytree(folder, scratch / "other", copy_function=shutil.copyfile))
    weights = {
        name: x / 2 if x.is_floating_point() else x for name, x in load_file(other / "generator.safetensors").items()
    }
    save_file(weights, other / "generator.safetensors")
    made = []
    for number, of in enumerate((folder, other)):
        with tracking.run(store, f"bench{number}", "bench") as run:
            made.append(model_registry.register_generator(run, of, "bench", f"key{number}", {}))
    return made


def body_of(server: str, form: str, n: int) -> Callable[[int], dict]:
    """`body(seed)`: a request for n samples."""
    if server == "mlflow":
        return lambda seed: {"dataframe_records": [{"n": n, "seed": seed}]}
    return lambda seed: {"n": n, "seed": seed, "format": form}


async def measure(args: argparse.Namespace, scratch: Path) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
    store = tracking.open_store(TrackingConfig())
    first, second = register(args.generator, scratch, store)
    model_registry.set_alias(store, first, "champion")
    ours, theirs = free_port(), free_port()
    url, invocations = f"http://127.0.0.1:{ours}/v1/samples", f"http://127.0.0.1:{theirs}/invocations"
    serve = (sys.executable, "-m", "pipelines.cli", "serve", "models:/bench@champion", "--port", str(ours))
    mlflow = (sys.executable, "-m", "mlflow", "models", "serve", "-m", first.uri, "--env-manager", "local")
    print(f"{args.generator}: {CLIENTS} clients, {args.seconds:g} s, {os.cpu_count()} cores")
    print(f"torch {torch.__version__}, load of the machine before {os.getloadavg()[0]:.1f}", flush=True)
    with (
        server(*serve, log=scratch / "ours.log") as our_pid,
        server(*mlflow, "--port", str(theirs), log=scratch / "theirs.log") as their_pid,
    ):
        print(f"ours answers after {await wait_for(f'http://127.0.0.1:{ours}/readyz'):.1f} s")
        await wait_for(f"http://127.0.0.1:{theirs}/ping")

        for turn, n in itertools.product(range(args.turns), args.samples):
            for server_name, form in (("mlflow", "json"), ("ganlib", "json"), ("ganlib", "npy"), ("ganlib", "png")):
                to, pid = {"mlflow": (invocations, their_pid), "ganlib": (url, our_pid)}[server_name]
                body = body_of(server_name, form, n)
                await closed(to, body, 1)
                load = await closed(to, body, args.seconds, pid=pid)
                print(f"{turn} n {n:4} {server_name} {form:4} {load.line(n)}", flush=True)

        if args.floor:
            await measure_floor(args, scratch)
            return

        npy = body_of("ganlib", "npy", n)
        capacity = await closed(url, npy, args.seconds)
        rate = 4 * len(capacity.seconds) / capacity.wall_s
        load = await opened(url, npy, rate, args.seconds)
        print(f"  {rate:.0f} requests/s, 4x: {load.line(n)}", flush=True)

        def move() -> None:
            time.sleep(3)
            model_registry.set_alias(store, second, "champion")

        load = await closed(url, npy, 20, keep=True, meanwhile=move)
        print(f"  alias moved   {load.line(n)} {dict(load.versions)}")
        expected = {}
        wrong = 0
        for version in (first, second):
            expected[version.uri] = load_generator(
                model_registry.download(store, version, scratch / str(version.number))
            )
        for uri, seed, content in load.bodies[:: max(1, len(load.bodies) // 400)]:
            generator = expected[uri]
            made = generator.spec.kind.quantise(generator.spec.sample, generator.sample(n, seed=seed)["sample"]).numpy()
            shown = generator.spec.kind.present(generator.spec.sample, "sample", made)
            wrong += bool(np.abs(np.load(io.BytesIO(content)).astype(int) - shown).max() > 1)
        print(f"  answers that are not those of the version they name: {wrong} of some 400")


async def measure_floor(args: argparse.Namespace, scratch: Path) -> None:
    for name in ("empty", "alone"):
        port = free_port()
        words = (sys.executable, str(Path(__file__).resolve()), str(args.generator), f"--{name}", str(port))
        with server(*words, log=scratch / f"{name}.log") as pid:
            await wait_for(f"http://127.0.0.1:{port}/readyz")
            for turn in range(args.turns):
                to, body = f"http://127.0.0.1:{port}/v1/samples", body_of("ganlib", "npy", 1)
                await closed(to, body, 1)
                print(
                    f"{turn} n    1 {name:6} npy  {(await closed(to, body, args.seconds, pid=pid)).line(1)}", flush=True
                )


def serve_nothing(port: int) -> None:
    """Ray Serve as `pipelines.serve.run` starts it, until SIGTERM; each request is answered at once."""
    os.environ.update({key: value for key, value in RAY_SETTINGS.items() if key not in os.environ})
    from fastapi import FastAPI, Request, Response
    from ray import serve

    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    @app.post("/v1/samples")
    async def samples(request: Request) -> Response:
        await request.body()
        return Response(bytes(912), media_type="application/x-npy")

    class Empty:
        pass

    with start_local(1):
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        made = serve.deployment(max_ongoing_requests=10_000, logging_config={"enable_access_log": False})
        serve.run(made(serve.ingress(app)(Empty)).bind(), name="empty", route_prefix="/")
        threading.Event().wait()


def serve_alone(generator: Path, port: int) -> None:
    torch.set_num_threads(1)
    uvicorn.run(api(Settings(model=str(generator))), host="127.0.0.1", port=port, access_log=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path, help="a generator's folder")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 64, 16], help="of a request")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--floor", action="store_true", help="measure `empty` and `alone` in place of the last two")
    parser.add_argument("--empty", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.empty:
        serve_nothing(args.empty)
    if args.alone:
        serve_alone(args.generator, args.alone)
        return
    args.generator = args.generator.resolve()
    with tempfile.TemporaryDirectory(prefix="ganlib-bench-") as folder:
        os.chdir(folder)
        try:
            asyncio.run(measure(args, Path(folder)))
        except BaseException:
            for log in Path(folder).glob("*.log"):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
