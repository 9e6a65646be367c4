"""Specs of images and of pairs, and prepared folders, without a source."""

import dataclasses
import functools

import numpy as np
import torch

from ganlib import registry, shard_writer
from ganlib.data import _kind, image, pair, table
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


def table_spec(rows):
    """Of a table of these rows, and its codes `[N, columns]`."""
    cfg = table.scan(table.Config(), rows)
    stored = np.stack([table.encode(cfg, row)["sample"] for row in rows])
    return Spec(table.settle(cfg, [{"sample": stored}]), "table", (), COUNTS, ""), stored


def packed_rows(spec, examples, labels=None, splits=None):
    """Encoded examples, `{part: array}` each, as `shard_writer.write` takes them; attributes are numbers from 0 on."""
    hashes, packed = zip(*(shard_writer.pack(spec.parts, example) for example in examples), strict=True)
    labels = [0] * len(packed) if labels is None else list(labels)
    attributes = [(float(i),) * len(spec.attributes) for i in range(len(packed))]
    return shard_writer.table(list(hashes), packed, labels, splits, attributes)


def completed(spec):
    """What `shard_writer.write` calls to describe the data: `spec` with what was found."""

    def describe(found, training):
        return Spec(spec.sample, spec.modality, spec.classes, found.counts, found.content_hash, spec.attributes)

    return describe


def kind_of(modality):
    """The kind of data that families for `modality` play over."""
    return next(kind for kind in map(_kind.load, registry.names("data")) if modality == kind.MODALITY)


@functools.cache
def tiny_spec(kind):
    """The spec of a kind's tiny examples, and these as networks see them."""
    cfg, payloads = kind.tiny()
    cfg = cfg if kind.scan is None else kind.scan(cfg, payloads)
    encoded = [kind.encode(cfg, payload) for payload in payloads]
    stored = {name: np.stack([one[name] for one in encoded]) for name in encoded[0]}
    cfg = kind.settle(cfg, [stored])
    examples = {name: kind.decode(cfg, name, torch.from_numpy(column)) for name, column in stored.items()}
    return Spec(cfg, kind.MODALITY, (), COUNTS, ""), examples


def tiny_folder(kind, folder, attributes=()):
    """A prepared folder of a kind's tiny examples, with attributes of these names."""
    spec = dataclasses.replace(tiny_spec(kind)[0], attributes=attributes)
    rows = packed_rows(spec, [kind.encode(spec.sample, payload) for payload in kind.tiny()[1]])
    folder.mkdir(parents=True)
    shard_writer.write(
        folder, [rows], spec.parts, completed(spec), test_share=0.3, shard_mb=1, duplicates=kind.DUPLICATES
    )
    return folder
