"""Weak scaling over hosts in network namespaces: 1, 2 and 4 nodes with the same work each and links of a stated rate.

    dvc repro reference                    # or any run before: uses data/prepared and data/reference
    sudo -E python tests/bench/weak_scaling.py [--nodes 1 2 4] [--rate 1gbit] [--cpus 0.4] [--steps 400] [--rounds 2]

Needs root, for `infra/local-cluster`. Each node has one worker, `--cpus` of a core and a batch of `--batch`; all
numbers of nodes take the same number of steps, and turns. A node's link has `--rate` in both directions (tc's token
bucket). Efficiency is a node's images/s against those of a single node, which sends nothing.

The model: t(n) = t(1) + L·h(n) + 2(n-1)/n · B / rate, where B are the bytes of the gradients of a step, all of which
cross each link twice in a ring, and L is what latency costs a step. h(n) = n-1 for Gloo's rings and all-to-all, in
which messages follow each other; h(n) = log2(n) for trees, which NCCL has. L is what t(2) leaves, and t(4) tests the
model. It assumes that nodes are alike, that no link is shared, that nothing overlaps with backward (so on CPUs; see
ganlib.distributed), and that BatchNorm's collectives stay as small as they are.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML
from torchrun import ROOT, copy, measure

CLUSTER = ROOT / "infra/local-cluster/cluster.sh"
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def bytes_per_second(rate: str) -> float:
    unit = next((unit for unit in UNITS if rate.endswith(unit) and rate.removesuffix(unit).isdecimal()), None)
    if unit is None:
        sys.exit(f"--rate: found {rate!r}, expected a number and one of {', '.join(UNITS)}, such as 1gbit")
    return int(rate.removesuffix(unit)) * UNITS[unit] / 8


def gradient_bytes(folder: Path) -> int:
    from ganlib.build import build_game
    from ganlib.config import load_params
    from ganlib.shards import read_spec

    game = build_game(load_params(folder / "params.yaml"), read_spec(folder / "data/prepared"))
    return sum(4 * p.numel() for player in (game.generator, game.discriminator) for p in player.parameters())


def cluster(env: dict[str, str], *words: str) -> None:
    done = subprocess.run([str(CLUSTER), *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"cluster.sh {' '.join(words)}: {done.stderr[-500:]}")


def seconds_per_step(nodes: int, args: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        args.kimg = args.steps * args.batch * nodes / 1000
        copy(folder, args)
        yaml = YAML()
        params = yaml.load(folder / "params.yaml")
        file = folder / "params/models" / f"{params['model']}.yaml"
        model = yaml.load(file)
        model["batch"] = args.batch * nodes
        yaml.dump(model, file)
        params["train"].update(report_kimg=args.kimg / 5, checkpoint_kimg=args.kimg)
        params["scale"].update(num_workers=nodes, storage=str(folder / "storage"))
        yaml.dump(params, folder / "params.yaml")
        binaries = str(Path(sys.executable).parent)
        env = {**os.environ, "PYTHONPATH": scratch, "RAY_BIN": binaries, "NODE_CPUS": str(args.cpus)}
        cluster(env, "down")
        try:
            cluster(env, "up", str(nodes))
            for node in range(1, nodes + 1):
                cluster(env, "slow", str(node), args.rate, "0ms")
            speeds = measure([str(CLUSTER), "run", "python", "-m", "pipelines.train"], folder)
        finally:
            cluster(env, "down")
        return args.batch * nodes / speeds["steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rate", default="1gbit", help="of each link, as tc has it")
    parser.add_argument("--cpus", type=float, default=0.4, help="of a core, for each node")
    parser.add_argument("--batch", type=int, default=32, help="images of a node in a step")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--width", type=int, help="of the network, instead of that of params.yaml")
    args = parser.parse_args()
    rate = bytes_per_second(args.rate)
    found: dict[int, list[float]] = {nodes: [] for nodes in args.nodes}
    for number in range(args.rounds):
        for nodes, seconds in found.items():
            load = os.getloadavg()[0]
            seconds.append(seconds_per_step(nodes, args))
            speed = args.batch * nodes / seconds[-1]
            print(
                f"round {number}  {nodes} nodes  {1e3 * seconds[-1]:7.1f} ms a step  {speed:6.0f} images/s  "
                f"(load {load:.1f} before)",
                flush=True,
            )
    time_of = {nodes: statistics.median(seconds) for nodes, seconds in found.items()}
    for nodes, seconds in time_of.items():
        print(f"{nodes} nodes: {1e3 * seconds:.1f} ms a step, efficiency {time_of[args.nodes[0]] / seconds:.2f}")
    if not {1, 2} <= time_of.keys():
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy(Path(scratch), args)
        size = gradient_bytes(Path(scratch))

    def wire(nodes: int) -> float:
        return 2 * (nodes - 1) / nodes * size / rate

    latency = time_of[2] - time_of[1] - wire(2)
    print(
        f"{size / 1e6:.1f} MB of gradients a step, {1e3 * wire(2):.1f} ms on a link of {args.rate} for 2 nodes; "
        f"L = {1e3 * latency:.1f} ms"
    )
    if latency < 0:
        print("the model is not fitted: 2 nodes were faster than its wire time allows, so the measurement is all noise")
        return
    for shape, hops in (("ring", lambda n: n - 1), ("tree", math.log2)):
        for nodes in (4, 8, 64, 512):
            predicted = time_of[1] + latency * hops(nodes) + wire(nodes)
            measured = f", measured {1e3 * time_of[nodes]:.1f}" if nodes in time_of else ""
            print(
                f"model, {shape}, {nodes:3} nodes: {1e3 * predicted:7.1f} ms a step{measured}, "
                f"efficiency {time_of[1] / predicted:.2f}"
            )


if __name__ == "__main__":
    main()
