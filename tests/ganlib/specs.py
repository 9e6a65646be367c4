"""Specs of images and of pairs, and prepared folders, without a source."""

from ganlib import shards
from ganlib.data import image, pair
from ganlib.data._spec import Spec

COUNTS = {"train": 8, "test": 8}


def image_spec(shape, classes=(), counts=COUNTS, content_hash="", attributes=()):
    """Of images `(channels, height, width)`."""
    sample = image.Config(resolution=tuple(shape[1:]), channels=shape[0])
    return Spec(sample, "image", tuple(classes), counts, content_hash, tuple(attributes))


def pair_spec(given, generated, size, counts=COUNTS, content_hash=""):
    """Of pairs of images with so many channels, of `(height, width)`."""
    sample = pair.Config(resolution=tuple(size), channels=(given, generated))
    return Spec(sample, "image_pair", (), counts, content_hash)


def packed_rows(spec, examples, labels=None, splits=None):
    """Encoded examples, `{part: array}` each, as `shards.write` takes them."""
    hashes, packed = zip(*(shards.pack(spec.parts, example) for example in examples), strict=True)
    return shards.table(list(hashes), packed, [0] * len(packed) if labels is None else list(labels), splits)


def completed(spec):
    """What `shards.write` calls to describe the data: `spec` with what was found."""

    def describe(found, training):
        return Spec(spec.sample, spec.modality, spec.classes, found.counts, found.content_hash, spec.attributes)

    return describe
