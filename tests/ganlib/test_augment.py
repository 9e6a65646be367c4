"""Augmentation: what each operation does, against plain formulas; its derivatives; and the pace of adaptation."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.autograd import gradcheck, gradgradcheck

from ganlib import augment
from ganlib.augment import OPERATIONS, Augment, AugmentConfig
from ganlib.noise import Noise
from ganlib.schedules import Schedule

EACH = [(kind, name) for kind, names in OPERATIONS.items() for name in names]


def an_augment(kind="ada", *operations, p=1.0, **more):
    return Augment(
        AugmentConfig(kind=kind, operations=operations or OPERATIONS[kind], probability=p, **{"target": None, **more})
    )


def some_images(n=6, channels=3, height=8, width=8, dtype=torch.float64):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def augmented(images, kind, *operations, p=1.0, key=0):
    return an_augment(kind, *operations, p=p)(images, Noise(key, size=len(images)), 0.0)


class Fixed(Noise):
    """Every uniform draw is `u`, every normal draw is `z`."""

    def __init__(self, size, u=0.0, z=0.0):
        super().__init__(0, size=size)
        self.u, self.z, self.size = u, z, size

    def uniform(self, *shape):
        return torch.full((self.size, *shape), self.u)

    def normal(self, *shape):
        return torch.full((self.size, *shape), self.z)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_probability_zero_is_the_identity_and_draws_as_much(kind):
    images = some_images()
    drawn = []
    for p in (0.0, 0.5, 1.0):
        noise = Noise(0, size=len(images))
        seen = an_augment(kind, p=p)(images, noise, 0.0)
        drawn.append(noise.uniform(3))
        assert torch.equal(seen, images) == (p == 0.0)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_each_operation_is_done_to_the_share_p_of_images_and_leaves_the_rest_as_they_are(kind, name):
    images = some_images(400, dtype=torch.float32)
    kept = (augmented(images, kind, name, p=0.25) == images).flatten(1).all(1).double().mean()
    # of those operated on, some flips are none, some turns are by 0, some shifts by 0
    none = {"flip": 1 / 2, "luma_flip": 1 / 2, "rotate90": 1 / 4, "translate_integer": 1 / 9, "translation": 1 / 9}
    assert abs(kept - (0.75 + 0.25 * none.get(name, 0.0))) < 0.06


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "name"), EACH)
def test_derivatives_of_each_operation(kind, name, channels):
    images = some_images(3, channels, 4, 5).requires_grad_()

    def seen(images):
        return augmented(images, kind, name, p=0.7)

    assert gradcheck(seen, images)
    # the images' slopes enter a penalty as the gradient of something that is not linear
    assert gradgradcheck(lambda images: seen(images).sin(), images, fast_mode=True)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_rows_are_augmented_alike_however_they_are_cut(kind):
    images = some_images(8, dtype=torch.float32)
    whole = augmented(images, kind, p=0.7)
    for parts in (2, 4):
        rows = [slice(i * 8 // parts, (i + 1) * 8 // parts) for i in range(parts)]
        cut = [an_augment(kind, p=0.7)(images[r], Noise(0, size=8, rows=r), 0.0) for r in rows]
        torch.testing.assert_close(torch.cat(cut), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", OPERATIONS)
def test_type_and_layout(kind, dtype):
    images = some_images(dtype=dtype)
    plain = augmented(images, kind)
    assert plain.dtype == dtype
    last = augmented(images.contiguous(memory_format=torch.channels_last), kind)
    torch.testing.assert_close(last, plain, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmented(images, kind), plain)


# --- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (6, 9)])
def test_flips_quarter_turns_and_whole_shifts_move_pixels_to_the_bit(height, width):
    images = some_images(300, 3, height, width, dtype=torch.float32)
    turned = [images, images.rot90(2, (2, 3))] + ([images.rot90(k, (2, 3)) for k in (1, 3)] if height == width else [])
    flipped = [images, images.flip(3)]
    down, across = int(height / 8 + 0.5), int(width / 8 + 0.5)
    padded = torch.nn.functional.pad(images, (across, across, down, down), mode="reflect")
    shifted = [padded[:, :, y : y + height, x : x + width] for y in range(2 * down + 1) for x in range(2 * across + 1)]
    for name, outcomes in (("flip", flipped), ("rotate90", turned), ("translate_integer", shifted)):
        same = torch.stack([(augmented(images, "ada", name) == one).flatten(1).all(1) for one in outcomes])
        assert (same.sum(0) == 1).all(), name
        shares = same.double().mean(1)  # all outcomes as likely
        assert (shares - 1 / len(outcomes)).abs().max() < 0.12, name


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_a_rotation_by_quarters_is_torch_s(quarters, size):
    images = some_images(height=size, width=size)
    angle = torch.full((len(images),), quarters * math.pi / 2, dtype=torch.float64)
    turned = augment._resample(images, augment._rotation(angle), torch.zeros(len(images), 2, dtype=torch.float64))
    torch.testing.assert_close(turned, images.rot90(quarters, (2, 3)))


def test_resampling_is_bilinear_with_mirrored_edges():
    """Against torch's own `grid_sample`."""
    images = some_images(5, 3, 6, 9)
    generator = torch.Generator().manual_seed(2)
    linear = torch.eye(2, dtype=torch.float64) + torch.randn(5, 2, 2, generator=generator, dtype=torch.float64)
    offset = torch.randn(5, 2, generator=generator, dtype=torch.float64) * 5
    half = torch.tensor([8 / 2, 5 / 2], dtype=torch.float64)  # corners are the middles of the outermost pixels
    theta = torch.cat([linear * half / half[:, None], (offset / half)[:, :, None]], 2)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=True)
    expected = torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    torch.testing.assert_close(augment._resample(images, linear, offset), expected)


def test_the_transform_is_the_papers_product_of_matrices():
    """Karras et al. 2020a, appendix B: G = shift · rotate · stretch · rotate · scale · whole shift · turn · flip."""
    n, height, width = 7, 10, 10
    names = OPERATIONS["ada"]
    noise = Noise(3, size=n)
    gates, values = (x.double() for x in noise.uniform(len(names), 5).split([2, 3], 2))
    normal = noise.normal(len(names), 2).double()
    linear, offset = augment._transform(augment._Draws(dict.fromkeys(names, 1.0), Noise(3, size=n), 1.0), height, width)
    place = {name: k for k, name in enumerate(names)}
    assert (gates < 1.0).all()
    for i in range(n):
        u = {name: 2.0 * values[i, k] - 1.0 for name, k in place.items()}
        z = {name: normal[i, k] for name, k in place.items()}

        def turn(angle):
            return matrix(angle.cos(), -angle.sin(), angle.sin(), angle.cos())

        def matrix(a, b, c, d, x=0.0, y=0.0):
            return torch.tensor([[a, b, x], [c, d, y], [0.0, 0.0, 1.0]], dtype=torch.float64)

        stretch, scale = 2.0 ** (0.2 * z["anisotropic"][0]), 2.0 ** (0.2 * z["scale"][0])
        most = int(width / 8 + 0.5)
        whole = torch.floor(u["translate_integer"] * (most + 0.5) + 0.5)
        forward = [
            matrix(-1.0 if u["flip"][0] > 0 else 1.0, 0, 0, 1),
            turn(-torch.floor(2 * u["rotate90"][0]) * math.pi / 2),
            matrix(1, 0, 0, 1, whole[0], whole[1]),
            matrix(scale, 0, 0, scale),
            turn(-u["rotate"][0] * math.pi),
            matrix(stretch, 0, 0, 1 / stretch),
            turn(-u["rotate"][1] * math.pi),
            matrix(1, 0, 0, 1, z["translate_fraction"][0] * width / 8, z["translate_fraction"][1] * height / 8),
        ]
        product = torch.eye(3, dtype=torch.float64)
        for step in forward:
            product = step @ product
        inverse = product.inverse()
        torch.testing.assert_close(linear[i].double(), inverse[:2, :2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(offset[i].double(), inverse[:2, 2], rtol=1e-4, atol=1e-4)


def test_rotation_happens_at_least_once_with_probability_p():
    done = augment._Draws({"rotate": 1.0}, Noise(0, size=20_000), 0.3)
    once = done.done("rotate", 0) | done.done("rotate", 1)
    assert abs(once.double().mean() - 0.3) < 0.015


def test_operations_have_their_shares_of_the_probability():
    shares = {"flip": 1.0, "cutout": 0.5, "rotate": 0.5}
    assert dict(AugmentConfig(kind="ada", operations=shares).operations) == shares
    done = augment._Draws(shares, Noise(0, size=20_000), 0.6)
    turned = done.done("rotate", 0) | done.done("rotate", 1)
    found = [float(x.double().mean()) for x in (done.done("flip"), done.done("cutout"), turned)]
    assert found == pytest.approx([0.6, 0.3, 0.3], abs=0.015)


def test_diffaugment_shifts_zeros_in():
    images = some_images(300, 3, 16, 24, dtype=torch.float32) + 5.0
    moved = augmented(images, "diffaugment", "translation")
    padded = torch.nn.functional.pad(images, (3, 3, 2, 2))
    outcomes = [padded[:, :, y : y + 16, x : x + 24] for y in range(5) for x in range(7)]
    same = torch.stack([(moved == one).flatten(1).all(1) for one in outcomes])
    assert (same.sum(0) == 1).all()
    assert same.any(1).all()


@pytest.mark.parametrize("kind", OPERATIONS)
def test_cutout_is_a_rectangle_of_half_the_size(kind):
    images = some_images(200, 3, 16, 24, dtype=torch.float32) + 5.0
    holes = augmented(images, kind, "cutout") == 0.0
    assert torch.equal(holes.any(1), holes.all(1))
    rows, columns = holes[:, 0].any(2), holes[:, 0].any(1)
    assert torch.equal(holes[:, 0], rows[:, :, None] & columns[:, None])
    assert (rows.sum(1).max(), columns.sum(1).max()) == (8, 12)
    assert rows.any(0).all()
    assert columns.any(0).all()
    middle = augment._cut_out(images, augment._Draws({"cutout": 1.0}, Fixed(200, u=0.5), 1.0))[0, 0] == 0.0
    assert middle[4:12, 6:18].all()
    assert middle.sum() == 8 * 12


# --- colour --------------------------------------------------------------------------------------------------------


def test_ada_s_colours_are_the_papers_product_of_matrices():
    n = 9
    names = OPERATIONS["ada"]
    images = some_images(n)
    noise = Noise(5, size=n)
    values = 2.0 * noise.uniform(len(names), 5)[:, :, 2].double() - 1.0
    normal = noise.normal(len(names), 2)[:, :, 0].double()
    seen = augment._recolour(images, augment._Draws(dict.fromkeys(names, 1.0), Noise(5, size=n), 1.0))
    v = torch.ones(3, dtype=torch.float64) / math.sqrt(3.0)
    eye, grey = torch.eye(3, dtype=torch.float64), torch.outer(v, v)
    for i in range(n):
        u = {name: values[i, k] for k, name in enumerate(names)}
        z = {name: normal[i, k] for k, name in enumerate(names)}
        theta = u["hue"] * math.pi
        turned = torch.linalg.matrix_exp(theta * torch.linalg.cross(v.expand(3, 3), eye, dim=1).T)
        pixels = images[i].flatten(1)
        pixels = pixels + 0.2 * z["brightness"]
        pixels = pixels * 2.0 ** (0.5 * z["contrast"])
        pixels = (eye - 2.0 * grey * (u["luma_flip"] > 0.0)) @ pixels
        pixels = turned @ pixels
        pixels = (grey + (eye - grey) * 2.0 ** z["saturation"]) @ pixels
        torch.testing.assert_close(seen[i].flatten(1), pixels, rtol=1e-5, atol=1e-5)


def test_ada_treats_grey_images_as_grey_rgb():
    grey = some_images(20, 1)
    rgb = augmented(grey.expand(-1, 3, -1, -1), "ada", *augment._COLOUR)
    torch.testing.assert_close(
        augmented(grey, "ada", *augment._COLOUR).expand(-1, 3, -1, -1), rgb, rtol=1e-5, atol=1e-5
    )


def test_diffaugment_s_colours_step_by_step():
    images = some_images(5)
    brightness, saturation, contrast = Noise(7, size=5).uniform(1, 5)[:, 0, 2:].double().view(5, 3, 1, 1, 1).unbind(1)
    x = images + (brightness - 0.5)
    x = (x - x.mean(1, keepdim=True)) * (2 * saturation) + x.mean(1, keepdim=True)
    x = (x - x.mean((1, 2, 3), keepdim=True)) * (contrast + 0.5) + x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(augmented(images, "diffaugment", "color", key=7), x, rtol=1e-5, atol=1e-6)


def test_noise_has_half_normal_strength():
    black = torch.zeros(4000, 1, 8, 8)
    deviation = augmented(black, "ada", "noise").flatten(1).std(1)
    assert abs(deviation.square().mean().sqrt() - 0.1) < 0.005
    assert abs(deviation.mean() - 0.1 * math.sqrt(2 / math.pi)) < 0.005


def test_colour_needs_one_or_three_channels():
    four = some_images(channels=4)
    with pytest.raises(ValueError, match=r"hue.* need images of 1 or 3 channels; found 4"):
        augmented(four, "ada")
    assert augmented(four, "ada", "flip", "rotate", "cutout").shape == four.shape


@pytest.mark.parametrize("kind", OPERATIONS)
def test_accelerators_read_the_same_pixels_by_another_way(kind, monkeypatch):
    """Values, gradients and the gradients of a penalty."""
    ends = []
    for accelerator in (False, True):
        monkeypatch.setattr(augment.device, "is_accelerator", lambda device, accelerator=accelerator: accelerator)
        images = some_images().requires_grad_()
        seen = augmented(images, kind)
        (slope,) = torch.autograd.grad(seen.pow(3).sum(), images, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), images)
        ends.append((seen.detach(), slope.detach(), second))
    torch.testing.assert_close(*ends)


# --- probability ---------------------------------------------------------------------------------------------------


def played(adaptive, sign, turns):
    """The probability after some turns, counted on, in which the discriminator's logits had these signs."""
    for _ in range(turns):
        adaptive.turn = getattr(adaptive, "turn", -1) + 1
        adaptive.adjust(torch.tensor(sign), turn=adaptive.turn, images=50)
    return float(adaptive.probability)


def test_probability_goes_from_0_to_1_in_adjust_kimg_and_no_further():
    adaptive = an_augment(p=0.0, target=0.6, adjust_kimg=2.0, every=4)
    assert played(adaptive, -1.0, 8) == 0.0
    assert played(adaptive, [1.0, 1.0, 1.0, 0.0], 3) == 0.0  # not yet adjusted
    assert played(adaptive, 1.0, 1) == pytest.approx(4 * 50 / 2000)
    assert played(adaptive, 1.0, 36) == pytest.approx(1.0)
    assert played(adaptive, 1.0, 8) == 1.0
    assert played(adaptive, 0.5, 20) == pytest.approx(0.5)
    # the mean over the turns counts: 0.55 < 0.6
    for signs in ([1.0, 1.0], [0.1, 0.1], [1.0, 1.0], [0.1, 0.1]):
        played(adaptive, signs, 1)
    assert float(adaptive.probability) == pytest.approx(0.4)


@pytest.mark.parametrize("turns", [3, 4, 6])
def test_state_goes_on_exactly(turns):
    one, other = (an_augment(p=0.1, target=0.6, adjust_kimg=2.0) for _ in range(2))
    played(one, 1.0, turns)
    other.load_state_dict({name: x.clone() for name, x in one.state_dict().items()})
    other.turn = one.turn
    seen = set()
    for sign in (0.3, 1.0, 0.4, 0.4, 0.4, 1.0):
        assert other.probability == one.probability
        assert played(other, sign, 1) == played(one, sign, 1)
        seen.add(float(one.probability))
    assert len(seen) > 1


def test_all_ranks_signs_count(monkeypatch):
    """One of two ranks, whose partner has seen 30 signs of +1 each turn."""
    adaptive = an_augment(p=0.5, target=0.6, adjust_kimg=2.0, every=1)
    assert played(adaptive, [-1.0] * 10, 1) == pytest.approx(0.475)
    monkeypatch.setattr(augment.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(augment.distributed, "all_reduce", lambda x: x + torch.tensor([30.0, 30.0]))
    assert played(adaptive, [-1.0] * 10, 1) == pytest.approx(0.45)  # (30 − 10) / 40 = 0.5 < 0.6
    assert played(adaptive, [1.0] * 10, 1) == pytest.approx(0.475)


def test_a_schedule_and_a_fixed_probability_are_not_adapted():
    scheduled = an_augment(p=Schedule(kind="linear", start=0.0, end=0.8, to_kimg=100.0))
    images = some_images()
    for kimg, p in ((0.0, 0.0), (50.0, 0.4), (100.0, 0.8)):
        scheduled(images, Noise(0, size=6), kimg)
        assert float(scheduled.probability) == pytest.approx(p)
        assert played(scheduled, 1.0, 8) == pytest.approx(p)


def test_defaults_are_the_papers():
    ada, diff = AugmentConfig(kind="ada"), AugmentConfig(kind="diffaugment")
    assert (ada.probability, ada.target, ada.adjust_kimg, ada.every) == (0.0, 0.6, 500.0, 4)
    assert set(ada.operations) == set(OPERATIONS["ada"]) - {"noise", "cutout"}
    assert (diff.probability, diff.target, [*diff.operations]) == (1.0, None, ["color", "translation", "cutout"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "adda"}, "diffaugment"),
        ({"kind": "ada", "operations": ("color",)}, "ada has no 'color'"),
        ({"kind": "ada", "operations": ("rotate_90",)}, "did you mean 'rotate90'"),
        ({"kind": "ada", "operations": ()}, "at least 1"),
        ({"kind": "ada", "operations": ("flip", "flip")}, "named twice"),
        ({"kind": "ada", "probability": 1.5}, "less than or equal to 1"),
        ({"kind": "ada", "probability": Schedule(start=0, end=1, to_kimg=9)}, "set target to null"),
        ({"kind": "diffaugment", "probability": Schedule(start=0, end=2, to_kimg=9)}, "between 0 and 1"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**wrong)
