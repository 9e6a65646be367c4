"""Tiles of wallpapers that Debian has in a light and a dark version: two domains, day and night, for a demonstration.

    apt-get download gnome-backgrounds plasma-workspace-wallpapers
    for package in *.deb; do dpkg-deb -x "$package" wallpapers; done
    python tests/bench/day_night.py wallpapers data/raw/domains
    dvc exp run -S data=domains -S model=cyclegan -S tune.num_samples=0 \\
        -S 'params/datasets/domains.yaml:source.domains=[day,night]'

Every third wallpaper is for testing. Each is scaled to 288 and to 576 pixels of height, and cut into tiles of 64 x 64.
The data do not say which tiles belong together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

TILE = 64
HEIGHTS = (288, 576)


def versions(folder):
    """`(name, light, dark)` of each wallpaper in two versions."""
    found = [
        (dark.name.removesuffix("-d.webp"), dark.with_name(dark.name.replace("-d.", "-l.")), dark)
        for dark in folder.rglob("backgrounds/gnome/*-d.webp")
    ]
    for dark in folder.rglob("contents/images_dark"):
        of_each = [max(one.iterdir(), key=lambda file: file.stat().st_size) for one in (dark.with_name("images"), dark)]
        found.append((dark.parent.parent.name.lower(), *of_each))
    return sorted(found)


def tiles(file):
    with Image.open(file) as opened:
        whole = opened.convert("RGB")
    for height in HEIGHTS:
        image = whole.resize((round(whole.width * height / whole.height), height), Image.Resampling.LANCZOS)
        for top in range(0, height - TILE + 1, TILE):
            for left in range(0, image.width - TILE + 1, TILE):
                yield image.crop((left, top, left + TILE, top + TILE))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wallpapers", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for number, (name, light, dark) in enumerate(versions(args.wallpapers)):
        split = "test" if number % 3 == 2 else "train"
        for domain, file in (("day", light), ("night", dark)):
            folder = args.out / split / domain
            folder.mkdir(parents=True, exist_ok=True)
            for i, tile in enumerate(tiles(file)):
                tile.save(folder / f"{name}-{i}.png")
        print(f"{split}: {name}")


if __name__ == "__main__":
    main()
