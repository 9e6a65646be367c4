"""Ray Train against torchrun: images/s of the same training with two workers of one thread each.

    dvc repro reference     # or any run before: uses data/prepared and data/reference
    python tests/bench/torchrun.py [--kimg 24] [--rounds 3] [--width 32] [--workers 1]

One side is the stage, `python -m pipelines.train`; the other is `torchrun --standalone --nproc-per-node 2` with
`ganlib.trainer.train` and nothing of Ray. Both train the model of `params.yaml` with the same seed on the same data,
report every 2 kimg and write a checkpoint every 8. The sides take turns. Two figures each: `steps` is the mean of what
training itself reports, which has the steps alone; `wall` is from the second report to the last as they are printed,
with all that reports and checkpoints cost. The stage runs in a copy of this checkout, so that nothing here changes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"([0-9.]+) of [0-9.]+ kimg +([0-9.]+) examples/s")
REPORT, CHECKPOINT = 2.0, 8.0


def torchrun_worker(folder: Path) -> None:
    """One rank, in the environment that torchrun made."""
    import torch
    import torch.distributed as dist

    from ganlib.config import load_params
    from ganlib.trainer import train
    from pipelines.training import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    params = load_params(folder / "params.yaml")

    def report(row, checkpoint):
        if dist.get_rank() == 0:
            if checkpoint is not None:  # where the stage has Ray keep it
                shutil.copytree(checkpoint, folder / f"torchrun/{row['kimg']}")
            print(
                f"{row['kimg']:7.1f} of {params.train.kimg:g} kimg  {row['examples_per_second']:6.0f} examples/s",
                flush=True,
            )

    train(params, report, prepared=str(folder / "data/prepared"), reference=str(folder / "data/reference"))
    dist.destroy_process_group()


def copy(folder: Path, args: argparse.Namespace) -> None:
    """The project as it is here, with what the stages before left, and the budget."""
    for name in ("ganlib", "pipelines", "params", "data/prepared", "data/reference"):
        if not (ROOT / name).is_dir():
            sys.exit(f"{ROOT / name}: no such folder; run: dvc repro reference")
        shutil.copytree(ROOT / name, folder / name)
    (folder / "outputs/tune").mkdir(parents=True)
    (folder / "outputs/tune/best_params.yaml").write_text("{}\n")  # both sides train params.yaml as it stands
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["train"].update(kimg=args.kimg, report_kimg=REPORT, checkpoint_kimg=CHECKPOINT, quality_samples=0)
    params["scale"].update(num_workers=args.workers, cpus_per_worker=1, gpus_per_worker=0)
    if args.width:
        file = folder / "params/models" / f"{params['model']}.yaml"
        model = yaml.load(file)
        model["network"]["width"] = args.width
        yaml.dump(model, file)
    yaml.dump(params, folder / "params.yaml")


def measure(command: list[str], folder: Path) -> dict[str, float]:
    """Images/s of one run."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen: list[tuple[float, float, float]] = []
    assert process.stdout is not None
    for line in process.stdout:
        if found := LINE.search(line):
            seen.append((time.perf_counter(), float(found[1]), float(found[2])))
    if process.wait() or len(seen) < 4:
        assert process.stderr is not None
        sys.exit(f"{' '.join(command)} failed: {process.stderr.read()[-1000:]}")
    first, last = seen[1], seen[-1]
    steps = (len(seen) - 2) / sum(1 / speed for _, _, speed in seen[2:])
    return {"steps": steps, "wall": 1000 * (last[1] - first[1]) / (last[0] - first[0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kimg", type=float, default=24.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, help="of the network, instead of that of params.yaml")
    parser.add_argument("--workers", type=int, default=2, help="fewer than the cores leave one for Ray's own processes")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torchrun_worker(args.worker)
        return
    found: dict[str, list[dict[str, float]]] = {"torchrun": [], "Ray Train": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy(folder, args)
        commands = {
            "torchrun": [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.workers}"),
                *(str(Path(__file__).resolve()), "--worker", str(folder)),
            ],
            "Ray Train": [sys.executable, "-m", "pipelines.train"],
        }
        for number in range(args.rounds):
            for name, command in commands.items():
                # or the second round would find the work done
                for left in (".ganlib", "outputs/train", "torchrun", "mlflow.db", "mlartifacts"):
                    path = folder / left
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                load = os.getloadavg()[0]
                found[name].append(measure(command, folder))
                figures = "  ".join(f"{kind} {speed:.0f}" for kind, speed in found[name][-1].items())
                print(f"round {number}  {name:9}  {figures} images/s  (load {load:.1f} before)", flush=True)
    for kind in ("steps", "wall"):
        ratios = [ray[kind] / other[kind] for ray, other in zip(found["Ray Train"], found["torchrun"], strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"Ray Train / torchrun, {kind}: x{statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
