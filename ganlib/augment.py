"""Augmentation between images and discriminator, so that little data are not learnt by heart.

Reals and fakes are changed alike before the discriminator sees them, and the generator learns through the change: it
has to make images that look real *after* it. Two kinds: `diffaugment` (Zhao et al. 2020) and `ada` (Karras et al.
2020a, appendix B), whose probability may be adapted to how far the discriminator overfits.

Everything is affine in the images, and built of operations that torch can differentiate
any number of times, so that R1, R2 and other gradient penalties with respect to the images before augmentation
work through it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from ganlib import device, distributed
from ganlib._config import Config
from ganlib.noise import Noise
from ganlib.registry import nearest
from ganlib.schedules import Schedule, value

__all__ = ["OPERATIONS", "Augment", "AugmentConfig"]

_GEOMETRY = ("flip", "rotate90", "translate_integer", "scale", "rotate", "anisotropic", "translate_fraction")
_COLOUR = ("brightness", "contrast", "luma_flip", "hue", "saturation")
OPERATIONS: dict[str, tuple[str, ...]] = {
    "diffaugment": ("color", "translation", "cutout"),
    "ada": (*_GEOMETRY, *_COLOUR, "noise", "cutout"),
}
"""what each kind can do, by the papers' names"""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "diffaugment": {"operations": OPERATIONS["diffaugment"], "probability": 1.0, "target": None},
    "ada": {"operations": (*_GEOMETRY, *_COLOUR), "probability": 0.0, "target": 0.6},  # the paper's "bgc"
}

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class AugmentConfig(Config):
    """What is left out is as in the paper of the kind."""

    kind: Literal["diffaugment", "ada"]
    operations: Annotated[dict[str, Probability], Field(min_length=1)]
    """which, each with its share of the probability; a list of names: 1 for each"""
    probability: Probability | Schedule
    target: Probability | None
    adjust_kimg: PositiveFloat = 500.0
    every: PositiveInt = 4

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # an unknown kind is reported as such, without "missing" for what it would have settled
        return {**_DEFAULTS.get(str(data.get("kind")), _DEFAULTS["ada"]), **data}

    @field_validator("operations", mode="before")
    @classmethod
    def _named_once(cls, names: Any) -> Any:
        if not isinstance(names, list | tuple):
            return names
        if len(set(names)) < len(names):
            raise ValueError(f"one is named twice in {', '.join(map(str, names))}")
        return dict.fromkeys(names, 1.0)

    @model_validator(mode="after")
    def _fits_the_kind(self) -> AugmentConfig:
        known = OPERATIONS[self.kind]
        for name in self.operations:
            if name not in known:
                raise ValueError(
                    f"operations: {self.kind} has no {name!r}{nearest(name, known)}; has: {', '.join(known)}"
                )
        if isinstance(self.probability, Schedule):
            if self.target is not None:
                raise ValueError("probability: adapted to a target it cannot follow a schedule; set target to null")
            if not all(0.0 <= end <= 1.0 for end in (self.probability.start, self.probability.end)):
                raise ValueError("probability: a schedule's start and end lie between 0 and 1")
        return self


class Augment(nn.Module):
    """Images as the discriminator sees them. Its state is the probability and, where that is adapted to a target, the
    signs seen since it was last adjusted."""

    probability: Tensor
    """of each operation on each image, as last used; float64 scalar"""
    signs: Tensor
    """Σ sign D(x) over all ranks since the probability was adjusted, and their number; `[2]`"""

    def __init__(self, cfg: AugmentConfig):
        super().__init__()
        self._cfg = cfg
        self.register_buffer("probability", torch.tensor(value(cfg.probability, 0.0), dtype=torch.float64))
        self.register_buffer("signs", torch.zeros(2))

    def forward(self, images: Tensor, noise: Noise, kimg: float | Tensor) -> Tensor:
        """Images `[N, C, H, W]` in about [−1, 1], of at least 2 x 2 pixels → the same shape and type.

        Applies each operation to each image with the probability. The number of random draws does not depend on it.
        Raises ValueError for operations on colour where images have neither 1 nor 3 channels.
        """
        names = self._cfg.operations
        if images.shape[1] not in (1, 3) and (colour := {"color", *_COLOUR} & set(names)):
            raise ValueError(
                f"augment: {', '.join(sorted(colour))} need images of 1 or 3 channels; found {images.shape[1]}"
            )
        if isinstance(self._cfg.probability, Schedule):
            now = torch.as_tensor(kimg, dtype=torch.float64)
            self.probability.copy_(torch.as_tensor(value(self._cfg.probability, now)))
        draws = _Draws(names, noise, self.probability)
        grain = noise.normal(*images.shape[1:]) if "noise" in names else None
        with device.full_precision(images):  # transforms need more than bfloat16's 8 bits
            if self._cfg.kind == "diffaugment":
                return _cut_out(_translate(_color(images, draws), draws), draws)
            if draws.any(_GEOMETRY):
                images = _resample(images, *_transform(draws, images.shape[2], images.shape[3]))
            if draws.any(_COLOUR):
                images = _recolour(images, draws)
            if grain is not None:  # σ = |N(0, 0.1²)|
                images = images + (draws.normal("noise")[:, 0].abs().view(-1, 1, 1, 1) * 0.1 * grain).to(images.dtype)
            return _cut_out(images, draws)

    @torch.no_grad()
    def adjust(self, sign_real: Tensor, *, turn: int, images: int) -> None:
        """Call after each of the discriminator's turns, counted from 0, on all ranks: with the signs of its logits on
        augmented reals (or their mean), any shape, and the number of reals that all ranks have shown in the turn.

        Where there is a target, r_t = E[sign D(x)] (Karras et al. 2020a, eq. 1) is compared with it every few
        turns: above it the discriminator overfits and the probability rises, below it falls, at a speed that leads
        from 0 to 1 in `adjust_kimg`.
        """
        cfg = self._cfg
        if cfg.target is None:
            return
        # in each turn, so that what is saved is the same whichever rank saves it
        total = sign_real.float().sum()
        self.signs += distributed.all_reduce(torch.stack([total, torch.full_like(total, sign_real.numel())]))
        if (turn + 1) % cfg.every:
            return
        total, count = self.signs.unbind()
        speed = images * cfg.every / (1000.0 * cfg.adjust_kimg)
        self.probability += torch.copysign(torch.full_like(total, speed), total / count - cfg.target)
        self.probability.clamp_(0.0, 1.0)
        self.signs.zero_()


class _Draws:
    """What each example has drawn for each operation: 0, which changes nothing, where that is not done to it."""

    def __init__(self, operations: dict[str, float], noise: Noise, p: float | Tensor):
        uniform = noise.uniform(len(operations), 5)
        self._gates, self._uniform = uniform[:, :, :2], uniform[:, :, 2:]
        self._normal = noise.normal(len(operations), 2)
        self._place = {name: k for k, name in enumerate(operations)}
        self._p = {name: p * share for name, share in operations.items()}
        if "rotate" in operations:  # it comes twice, so that at least once has p: Karras et al. 2020a, appendix B
            self._p["rotate"] = 1.0 - (1.0 - self._p["rotate"]) ** 0.5

    def any(self, operations: tuple[str, ...]) -> bool:
        """Whether one of these is ever done."""
        return any(name in self._place for name in operations)

    def done(self, operation: str, time: int = 0) -> Tensor:
        """Whether it is done to each example, `[N, 1]`; rotation: the first or the second time."""
        return self._gates[:, self._place[operation], time, None] < self._p[operation]

    def uniform(self, operation: str, time: int = 0) -> Tensor:
        """Uniform on [−1, 1), `[N, 3]`."""
        if operation not in self._place:
            return torch.zeros_like(self._uniform[:, 0])
        return (2.0 * self._uniform[:, self._place[operation]] - 1.0) * self.done(operation, time)

    def normal(self, operation: str) -> Tensor:
        """Standard normal, `[N, 2]`."""
        if operation not in self._place:
            return torch.zeros_like(self._normal[:, 0])
        return self._normal[:, self._place[operation]] * self.done(operation)


def _whole_pixels(draws: _Draws, name: str, height: int, width: int) -> Tensor:
    """Shifts (x, y), `[N, 2]`, of whole pixels, each as likely, up to ⅛ of the width and the height."""
    drawn = draws.uniform(name)
    shifts = [drawn[:, axis] * (int(size / 8 + 0.5) + 0.5) + 0.5 for axis, size in enumerate((width, height))]
    return torch.stack(shifts, 1).floor()


# --- geometry ------------------------------------------------------------------------------------------------------


def _transform(draws: _Draws, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from: `A [N, 2, 2]` and `b [N, 2]` with source = A · target + b.

    Coordinates (x, y) are pixels from the image's centre. Images are flipped, turned by quarters (by 180° only
    unless they are square) and shifted by whole pixels, which moves pixels without mixing them; then scaled by
    2^N(0, 0.2²), rotated, stretched by 2^N(0, 0.2²), rotated again and shifted by N(0, ⅛²) of their size. Here are
    the inverses, in turn. Karras et al. 2020a, appendix B.
    """
    flip = 1.0 - 2.0 * (draws.uniform("flip")[:, 0] > 0.0)
    quarters = draws.uniform("rotate90")[:, 0]
    quarters = (2.0 * quarters).floor() if height == width else 2.0 * quarters.floor()
    exact = _rotation(quarters * (math.pi / 2)).round()
    exact = torch.stack([exact[:, 0] * flip[:, None], exact[:, 1]], 1)
    shift = _whole_pixels(draws, "translate_integer", height, width)

    scale = (draws.normal("scale")[:, 0] * 0.2).exp2()
    stretch = (draws.normal("anisotropic")[:, 0] * 0.2).exp2()
    before, after = (draws.uniform("rotate", time)[:, time] * math.pi for time in (0, 1))
    stretched = torch.stack([1.0 / (scale * stretch), stretch / scale], 1)[:, :, None] * _rotation(after)
    smooth = _rotation(before) @ stretched
    drift = draws.normal("translate_fraction")
    drift = torch.stack([drift[:, 0] * (width / 8), drift[:, 1] * (height / 8)], 1)

    # exact (smooth (target − drift) − shift)
    return exact @ smooth, -(exact @ (smooth @ drift[:, :, None] + shift[:, :, None]))[:, :, 0]


def _rotation(angle: Tensor) -> Tensor:
    """Angles `[N]` in radians → matrices `[N, 2, 2]`."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def _resample(images: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """Images read at linear · (x, y) + offset for each pixel (x, y): bilinear, mirrored at the edges.

    Where the source is a whole pixel, it is that pixel to the bit. The paper's wavelet filters against aliasing are
    left out: they would pad the images and resample them at twice the resolution, several times the work. Pixels are
    gathered since torch cannot differentiate `grid_sample` twice; on a CPU thread that is no slower.
    """
    n, _, height, width = images.shape
    x = torch.arange(width, device=linear.device) - (width - 1) / 2
    y = torch.arange(height, device=linear.device)[:, None] - (height - 1) / 2
    middle = torch.stack([offset[:, 0] + (width - 1) / 2, offset[:, 1] + (height - 1) / 2], 1)
    a, b, start = linear[:, :, :1, None], linear[:, :, 1:, None], middle[:, :, None, None]
    source = (a * x + b * y + start).view(n, 2, 1, -1)  # (x, y) of each pixel, from the first one
    across, down = _around(source[:, 0], width), _around(source[:, 1], height)
    flat = images.contiguous().flatten(2)
    out = torch.zeros_like(flat)
    for row, of_row in down:
        for column, of_column in across:
            pixels = (row * width + column).long()
            out = torch.addcmul(out, _pixels_at(flat, pixels), (of_row * of_column).to(out.dtype))
    return out.view(images.shape)


def _around(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The pixel before and the one after a position on an axis, as (index, share)."""
    low = position.floor()
    part = position - low
    return [(_mirrored(low, size), 1.0 - part), (_mirrored(low + 1.0, size), part)]


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Indices beyond 0 … size − 1, reflected at the first and the last pixel as often as need be."""
    period = 2 * (size - 1)
    return (index - (index / period).round() * period).abs()


def _pixels_at(images: Tensor, places: Tensor) -> Tensor:
    """Images `[N, C, H·W]` at places `[N, 1, M]` → `[N, C, M]`."""
    n, channels, size = images.shape
    if not device.is_accelerator(images.device):
        return images.gather(2, places.expand(-1, channels, -1))
    # By rows of all channels: on a GPU, the gradient of gather sorts as many places for each channel where it has to be
    # deterministic, and with some versions of torch the device is waited for. On a CPU gather is twice as fast.
    rows = images.transpose(1, 2).flatten(0, 1)
    first = size * torch.arange(n, device=images.device)[:, None]
    read: Tensor = rows[(places[:, 0] + first).flatten()].unflatten(0, (n, -1)).transpose(1, 2)
    return read


def _translate(images: Tensor, draws: _Draws) -> Tensor:
    """Shifted by whole pixels; what comes into sight is 0. Zhao et al. 2020, section 3.2."""
    if not draws.any(("translation",)):
        return images
    n, _, height, width = images.shape
    shift = _whole_pixels(draws, "translation", height, width).long()
    x = torch.arange(width, device=shift.device) - shift[:, :1]
    y = torch.arange(height, device=shift.device) - shift[:, 1:]
    seen = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    pixels = (y.clamp(0, height - 1) * width)[:, :, None] + x.clamp(0, width - 1)[:, None]
    moved = _pixels_at(images.contiguous().flatten(2), pixels.view(n, 1, -1))
    return moved.reshape(images.shape) * seen[:, None]


def _cut_out(images: Tensor, draws: _Draws) -> Tensor:
    """A rectangle of half the width and height, its centre anywhere in the image, is set to 0."""
    if not draws.any(("cutout",)):
        return images
    n, _, height, width = images.shape
    centre = (draws.uniform("cutout") + 1.0) / 2.0
    inside = [
        (torch.arange(size, device=centre.device) + 0.5 - centre[:, axis, None] * size).abs() < size / 4
        for axis, size in ((0, width), (1, height))
    ]
    hole = inside[1][:, :, None] & inside[0][:, None] & draws.done("cutout")[:, :, None]
    return images * ~hole.view(n, 1, height, width)


# --- colour --------------------------------------------------------------------------------------------------------


def _color(images: Tensor, draws: _Draws) -> Tensor:
    """Brightness + U(−½, ½), saturation · U(0, 2), contrast · U(½, 1½), in turn. Zhao et al. 2020, section 3.2."""
    if not draws.any(("color",)):
        return images
    brightness, saturation, contrast = draws.uniform("color").to(images.dtype).view(-1, 3, 1, 1, 1).unbind(1)
    images = images + brightness / 2.0
    images = torch.lerp(images.mean(1, keepdim=True), images, 1.0 + saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, 1.0 + contrast / 2.0)


def _recolour(images: Tensor, draws: _Draws) -> Tensor:
    """Brightness + N(0, 0.2²), contrast · 2^N(0, ½²), luma flip, hue, saturation · 2^N(0, 1), in turn.

    Karras et al. 2020a, appendix B. With v the axis of greys, the paper's matrices all scale along v, or scale and
    turn about v: their product is l vvᵀ + k (cos θ (I − vvᵀ) + sin θ [v]ₓ). Greyscale images have the axis only.
    """
    contrast = (draws.normal("contrast")[:, 0] * 0.5).exp2()
    along = contrast * (1.0 - 2.0 * (draws.uniform("luma_flip")[:, 0] > 0.0))
    offset = (along * draws.normal("brightness")[:, 0] * 0.2).view(-1, 1, 1).to(images.dtype)
    along = along.view(-1, 1, 1)
    if images.shape[1] == 1:
        return images * along[:, :, :, None].to(images.dtype) + offset[:, :, :, None]
    about = (contrast * draws.normal("saturation")[:, 0].exp2()).view(-1, 1, 1)
    hue = (draws.uniform("hue")[:, 0] * math.pi).view(-1, 1, 1)
    eye = torch.eye(3, device=along.device)
    cross = (eye.roll(1, 0) - eye.roll(-1, 0)) / math.sqrt(3.0)  # [v]ₓ
    chroma = about * hue.cos()
    matrix = chroma * eye + (along - chroma) / 3.0 + about * hue.sin() * cross
    return torch.baddbmm(offset, matrix.to(images.dtype), images.flatten(2)).view(images.shape)
