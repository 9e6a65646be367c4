"""A model of what many GPUs would cost: no measurement. Its assumptions are the constants below.

    python tests/bench/scaling_model.py

Prints what the players' gradients weigh, and the efficiency at weak scaling (each GPU keeps its share of the batch, so
1.0 means n times the images a second): measured time of a step on one GPU / (that + what collectives add to it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ganlib import registry
from ganlib.config import load_params
from ganlib.data import image
from ganlib.data._spec import Spec
from ganlib.distributed import BUCKET_BYTES
from ganlib.models._layers import BatchNorm

GPUS_PER_NODE = 8
NVLINK = 450e9
"""bytes a second and direction, of each GPU: NVLink 4, 900 GB/s both ways (NVIDIA's H100 data sheet)"""
INFINIBAND = 400e9 / 8
"""bytes a second and direction, of one adapter: NDR, 400 Gb/s"""
REACHED = 0.8
"""of these peaks; assumed"""
LATENCY_IN_NODE, LATENCY_OF_HOP = 20e-6, 7e-6
"""seconds that a collective takes for no bytes: in a node, and for each level of NCCL's trees between nodes; assumed"""
BACKWARD = 0.5
"""of a step's time is spent in the two backward passes that buckets are summed in; assumed"""


@dataclass
class Case:
    """A preset; `batch` per GPU and `images_per_second` were measured on one H200, kernel by kernel, as several workers
    train (docs/gpu.md)."""

    name: str
    model: str
    preset: str
    size: int
    labels: int = 0
    batch: int | None = None
    images_per_second: float | None = None


CASES = [
    Case("dcgan", "dcgan", "none", 64, 10, 128, 8_547),
    Case("stylegan2_ffhq, 256²", "stylegan2", "stylegan2_ffhq", 256, 0, 32, 190),
    Case("stylegan2_ffhq, 1024²", "stylegan2", "stylegan2_ffhq", 1024),
    Case("r3gan_cifar10 (bf16)", "r3gan", "r3gan_cifar10", 32, 10, 128, 694),
    Case("biggan, 128²", "resnet", "biggan", 128, 1000),
]


@dataclass
class Traffic:
    """What one step sends."""

    generator: int
    discriminator: int
    """bytes of the players' gradients"""
    discriminator_steps: int
    batch_norms: int
    """collectives of BatchNorm: one in each forward and each backward pass through a layer"""


def traffic(case: Case) -> Traffic:
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    play = params.model_copy(update={"model": case.model, "preset": case.preset}).game
    sample = image.Config(resolution=(case.size, case.size), channels=3)
    spec = Spec(sample, "image", tuple(map(str, range(case.labels))), {}, "")
    game = registry.load("models", case.model).build(play.network, spec)

    def gradients(player: torch.nn.Module) -> int:
        return sum(4 * p.numel() for p in player.parameters() if p.requires_grad)

    def norms(player: torch.nn.Module) -> int:
        return sum(isinstance(layer, BatchNorm) for layer in player.modules())

    steps = play.discriminator_steps
    # the generator: forward in each turn of the discriminator, backward in its own; the discriminator: forward and
    # backward of reals and of fakes in each turn, of fakes in the generator's
    collectives = norms(game.generator) * (steps + 1) + norms(game.discriminator) * (4 * steps + 2)
    return Traffic(gradients(game.generator), gradients(game.discriminator), steps, collectives)


def all_reduce_seconds(size: float, gpus: int, adapters: int) -> float:
    """All-reduce of `size` bytes, 2(n − 1)/n of which pass each link; between nodes over their `adapters`."""
    if gpus <= GPUS_PER_NODE:
        return LATENCY_IN_NODE + 2 * (gpus - 1) / gpus * size / (NVLINK * REACHED)
    slowest = min(NVLINK, adapters * INFINIBAND)  # of the rings together, one through each adapter
    latency = LATENCY_IN_NODE + LATENCY_OF_HOP * math.log2(gpus / GPUS_PER_NODE)
    return latency + 2 * (gpus - 1) / gpus * size / (slowest * REACHED)


def added_seconds(sent: Traffic, step: float, gpus: int, adapters: int, overlap: bool) -> float:
    """What collectives add to a step of `step` seconds. BatchNorm's stop the pass that they are in, always."""
    added = sent.batch_norms * all_reduce_seconds(0, gpus, adapters)
    turns = sent.discriminator_steps + 1
    for size, times in ((sent.discriminator, sent.discriminator_steps), (sent.generator, 1)):
        if not overlap:
            added += times * all_reduce_seconds(size, gpus, adapters)
            continue
        count = math.ceil(size / BUCKET_BYTES)
        bucket = all_reduce_seconds(size / count, gpus, adapters)
        hidden = min((count - 1) * bucket, BACKWARD * step / turns)  # the last is complete when backward is over
        added += times * (count * bucket - hidden)
    return added


def table(*header: str) -> None:
    row(*header)
    row(*["---"] * len(header))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def main() -> None:
    clusters = {"8 GPUs": (8, 8)} | {
        f"{gpus} GPUs, {adapters} adapter{'s' * (adapters > 1)} a node": (gpus, adapters)
        for adapters in (8, 1)
        for gpus in (64, 512, 4096)
    }
    sent = {case.name: traffic(case) for case in CASES}
    print("The gradients of both players, and milliseconds to sum each once:\n")
    table("", "generator, MB", "discriminator, MB", "BatchNorm's collectives a step", *clusters)
    for name, one in sent.items():
        players = one.generator, one.discriminator
        summing = [sum(1e3 * all_reduce_seconds(size, *cluster) for size in players) for cluster in clusters.values()]
        row(name, *(f"{size / 1e6:.1f}" for size in players), str(one.batch_norms), *(f"{ms:.2f}" for ms in summing))
    print("\nEfficiency with the flat sum / with buckets that overlap:\n")
    table("", "step on one GPU, ms", *clusters)
    for case in CASES:
        for faster in (1, 4):
            if case.batch is not None and case.images_per_second is not None:
                step = case.batch / case.images_per_second / faster
                cells = []
                for cluster in clusters.values():
                    added = [added_seconds(sent[case.name], step, *cluster, overlap) for overlap in (False, True)]
                    cells.append(" / ".join(f"{step / (step + seconds):.3f}" for seconds in added))
                name = case.name if faster == 1 else f"the same, were it {faster} times faster"
                row(name, f"{step * 1e3:.1f}", *cells)


if __name__ == "__main__":
    main()
