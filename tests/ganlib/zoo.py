"""Every registered family, small: what the contract tests loop over."""

import dataclasses

import torch
from specs import image_spec, kind_of, pair_spec, tiny_spec

from ganlib import registry
from ganlib.game import Batch, Term
from ganlib.noise import Noise, seed_of
from ganlib.penalties import DIFFERENTIATE, PENALTIES

FAMILIES = registry.names("models")
CLASSES = ("a", "b", "c")
SHALLOW = {"cyclegan": {"blocks": 1}, "cut": {"blocks": 1, "layers": (0, 2, 4), "units": 8}, "stargan": {"blocks": 1}}
"""of translation, whose shipped networks are deep"""
FROM_NOISE = [f for f in FAMILIES if registry.modalities(registry.load("models", f))[0] == "image"]
CONDITIONED = [f for f in FROM_NOISE if "conditioning" in registry.load("models", f).Config.model_fields]


def config(family, **network):
    """The family's configuration at a size that tests can afford."""
    cls = registry.load("models", family).Config
    small = (
        {"latent_dim": 4, "width": 4, "discriminator_width": 4, "patch_levels": 1, "group": 2}
        | SHALLOW.get(family, {})
        | network
    )
    return cls(**{name: value for name, value in small.items() if name in network or name in cls.model_fields})


def spec_of(family, shape=None, classes=CLASSES, attributes=()):
    """Data that suit the family: the smallest images it makes, or `shape`; pairs where it translates."""
    modality = registry.modalities(registry.load("models", family))[0]
    if modality == "image_pair":
        generated, *size = shape or (1, 16, 16)
        return pair_spec(1, generated, size)
    if modality != "image":
        return suited(family, tiny_spec(kind_of(modality))[0])
    if shape is None:
        shape = next(s for s in ((1, 8, 8), (1, 16, 16), (1, 32, 32)) if builds(family, s))
    return image_spec(shape, classes, attributes=attributes)


def suited(family, spec):
    """A spec that the family plays over: with an attribute, if it has to have some."""
    try:
        registry.load("models", family).build(config(family), spec)
    except ValueError:
        return dataclasses.replace(spec, attributes=("age",))
    return spec


def builds(family, shape):
    try:
        registry.load("models", family).build(config(family), spec_of(family, shape))
    except ValueError:
        return False
    return True


def game_of(family, spec=None, penalties=(), **network):
    """A small game with the same weights each time, none of them the zeros that some families start from."""
    torch.manual_seed(0)
    game = registry.load("models", family).build(config(family, **network), spec or spec_of(family))
    with torch.no_grad():
        for p in (*game.generator.parameters(), *game.discriminator.parameters()):
            p.add_(torch.randn_like(p) * 0.1)
    return dataclasses.replace(game, terms=game.terms + tuple(penalty(name) for name in penalties))


def penalty(name):
    fn = PENALTIES[name]
    # weighted little: a discriminator that is thrown far off in one step moves nobody
    return Term(
        name, "discriminator", fn() if isinstance(fn, type) else fn, 0.1, needs_input_grad=name in DIFFERENTIATE
    )


def batches(spec, n=8, parts=1, key=0):
    """A global batch of `n` in equal microbatches."""
    generator = torch.Generator().manual_seed(seed_of(key))
    if spec.kind.is_picture:
        data = {name: torch.rand(n, *part.shape, generator=generator) * 2 - 1 for name, part in spec.parts.items()}
    else:
        rows = torch.randint(40, (n,), generator=generator)
        data = {name: examples[rows] for name, examples in tiny_spec(spec.kind)[1].items()}
    if spec.classes:
        data["label"] = torch.arange(n) % len(spec.classes)
    if spec.attributes:
        data["attributes"] = torch.rand(n, len(spec.attributes), generator=generator)
    rows = [slice(i * n // parts, (i + 1) * n // parts) for i in range(parts)]
    return [Batch({k: v[r] for k, v in data.items()}, Noise(0, key, size=n, rows=r)) for r in rows]


def play(game, spec, n=2, key=0):
    """One deal of the game, the fakes made of it, and the discriminator's logits of these."""
    (batch,) = batches(spec, n, key=key)
    deal = game.deal(batch)
    fake = game.generator(deal.inputs, deal.cond)
    verdict = game.discriminator(fake, deal.cond)
    return deal, fake, getattr(verdict, "logits", verdict)
