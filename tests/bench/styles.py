"""Pictures of what StyleGAN2's styles do: truncation, and styles of two images mixed.

    python tests/bench/styles.py FOLDER [-o styles.png]

FOLDER holds an exported generator (outputs/train/generator, or what tests/bench/quality.py --generators keeps). Above:
each row is one z, truncated to psi = 0, 0.25, 0.5, 0.75, 1 towards the mean w (Karras et al. 2019, appendix B). Below:
each image takes its coarse layers from the image at the left of its row and the rest from that at the top of its
column (figure 3 there).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ganlib.data.image import preview
from ganlib.export import load_generator
from ganlib.noise import Noise

PSI = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("styles.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=5)
    args = parser.parse_args()
    loaded = load_generator(args.folder)
    generator = loaded.game.generator
    side = args.rows

    def styles(seed, n, psi=1.0):
        inputs = loaded.game.ask({}, Noise(seed, "styles", size=n), psi)
        labels = torch.arange(n) % loaded.game.classes if loaded.game.classes else None
        return generator.styles(inputs, labels), inputs["noise"]

    truncated = [generator.synthesis(*styles(args.seed, side, max(psi, 1e-6))) for psi in PSI]
    above = torch.stack(truncated, 1).flatten(0, 1)

    of_rows, noise = styles(args.seed + 1, side)
    of_columns, _ = styles(args.seed + 2, side)
    coarse = of_rows.shape[1] // 2
    blank = torch.full_like(above[:1], -1.0)
    below = [blank, *generator.synthesis(of_columns, noise).unsqueeze(1)]
    for row in range(side):
        own = of_rows[row].expand(side, -1, -1)
        mixed = torch.cat([own[:, :coarse], of_columns[:, coarse:]], 1)
        below += [generator.synthesis(own[:1], noise[:1]), *generator.synthesis(mixed, noise).unsqueeze(1)]

    pictures = [
        preview(None, {"sample": images.clamp(-1, 1)}, columns)
        for images, columns in ((above, len(PSI)), (torch.cat(below), side + 1))
    ]
    from PIL import Image

    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height for picture in pictures) + 8), "white")
    whole.paste(pictures[0], (0, 0))
    whole.paste(pictures[1], (0, pictures[0].height + 8))
    whole.save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
