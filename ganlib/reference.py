"""What generated data are measured against: features of the real data, computed once, and the in-domain classifier.

The folder holds `reference.json`, `features/SPACE.safetensors` (train and test), and where there are labels
`labels.safetensors`, `classifier.safetensors` and `confusion.csv`.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ganlib import device as devices
from ganlib import health, shards
from ganlib.classifier import Classifier, fit, shrunk
from ganlib.config import ConfigError, ReferenceConfig
from ganlib.data._spec import Spec
from ganlib.features import Extractor, efficientnet_lite0, inception
from ganlib.metrics import class_coverage, fd, label_accuracy

__all__ = ["Reference", "Space", "build"]

LEAST = 10
"""examples in each split, below which a distribution has no neighbours and no covariance to speak of"""


@dataclass(frozen=True)
class Space:
    name: str
    extract: Callable[[Tensor], Tensor]
    """images `[N, C, H, W]` in [-1, 1] -> features `[N, D]`, float32, on the CPU"""
    train: Tensor
    """`[N, D]`"""
    test: Tensor
    """`[M, D]`"""


@dataclass(frozen=True)
class Reference:
    spec: Spec
    """of the data it was made from"""
    spaces: dict[str, Space]
    labels: dict[str, Tensor]
    """true classes, int64, of `train` and `test`; empty where unlabelled"""
    classifier: Classifier | None
    """None where unlabelled"""
    about: dict[str, Any]
    """`reference.json`"""

    @classmethod
    def load(cls, directory: str | Path, device: torch.device | str | None = None) -> Reference:
        """Read what `build` wrote. Networks run on `device`: a GPU if there is one, unless told.

        Raises FileNotFoundError if there is no reference, ConfigError if its Inception file is gone.
        """
        directory, device = Path(directory), torch.device(device or devices.default_device())
        if not (directory / "reference.json").is_file():
            raise FileNotFoundError(f"{directory} holds no reference; run the stage `reference`")
        about = json.loads((directory / "reference.json").read_text(encoding="utf-8"))
        spec = Spec.from_json(json.dumps(about["spec"]))
        labels, classifier = {}, None
        if about["classifier"]:
            labels = load_file(directory / "labels.safetensors")
            classifier = Classifier(spec.shape, len(spec.classes), about["classifier"]["width"])
            classifier.load_state_dict(load_file(directory / "classifier.safetensors"))
            classifier.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        spaces = {}
        for name, make in _extractors(spec, about["inception"], classifier, device).items():
            features = load_file(directory / "features" / f"{name}.safetensors")
            spaces[name] = Space(name, _when_needed(make), features["train"], features["test"])
        return cls(spec, spaces, labels, classifier, about)

    @property
    def size(self) -> int:
        """Training examples whose features are kept."""
        return min(len(space.train) for space in self.spaces.values())

    def check(self, spec: Spec) -> None:
        """Raises ConfigError if `spec` describes other data than the reference was made from."""
        if spec.content_hash != self.spec.content_hash:
            raise ConfigError(
                f"the reference is of other data (content hash {self.spec.content_hash[:12]}) than those at hand "
                f"({spec.content_hash[:12]}); run the stage `reference`"
            )

    def predict(self, features: Tensor) -> Tensor:
        """The classes, `[N]`, that the classifier sees in features of the space `classifier`."""
        if self.classifier is None:
            raise ValueError("without labels there is no classifier")
        with torch.inference_mode():
            head = self.classifier.head
            return self.classifier.classify(features.to(head.weight.device)).argmax(1).cpu()

    @property
    def space(self) -> Space:
        """In which `quality` is judged."""
        return self.spaces["classifier" if self.classifier else "efficientnet_lite0"]

    def quality(self, features: Tensor, label: Tensor | None = None) -> dict[str, float]:
        """How good and how varied samples are, of which the features `[N, D]` in `space` are given, and the classes
        `[N]` that were asked for, if any.

        For use while training: against the training set. `quality/fd` is infinite if a sample is not a number.
        """
        finite = bool(torch.isfinite(features).all())
        if not finite:
            return {"quality/fd": math.inf}
        space = self.space
        reals = space.train[: len(features)]
        some = health.some(len(reals))
        found = {
            "quality/fd": fd.distance(self._train, fd.gaussian(features)),
            "diversity/features": health.diversity(features[some], reals[some]),
            "spacing/features": health.spacing(features[some], reals[some]),
            "rank/features": health.effective_rank(features) / health.effective_rank(reals),
        }
        if self.classifier is not None:
            real = {"predicted": self.predict(space.train)}
            fake = {"predicted": self.predict(features)}
            found["quality/class_coverage"] = class_coverage.compute(real, fake)
            if label is not None:
                found["quality/label_accuracy"] = label_accuracy.compute(real, {**fake, "label": label})
        return found

    @functools.cached_property
    def _train(self) -> fd.Gaussian:
        return fd.gaussian(self.space.train)


def build(
    directory: str | Path,
    spec: Spec,
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    cfg: ReferenceConfig,
    seed: int,
) -> dict[str, Any]:
    """Write the folder from the stored splits; returns `reference.json`.

    A split has `sample`, uint8 `[N, *shape]`, a tensor or `shards.LazyRows`, and `label`, int64 `[N]`, where labelled.
    Samples are read once and never held, but for the classifier, and for it no larger than it looks at them.
    Raises ConfigError for data that have no feature space here, or too few of them, OSError if they cannot be written.
    """
    directory, device = Path(directory), devices.default_device()
    if spec.modality not in ("image", "image_pair"):
        raise ConfigError(f"reference: features are for image data, these are {spec.modality}")
    for split, stored in (("train", train), ("test", test)):
        if len(stored["sample"]) < LEAST:
            raise ConfigError(
                f"reference: the {split} split has {len(stored['sample'])} examples; at least {LEAST} are needed"
            )
    decode = functools.partial(spec.kind.decode, spec.sample, "sample")
    splits = {"train": train, "test": test}

    extractors = {name: make() for name, make in _extractors(spec, cfg.inception, None, device).items()}
    parts: dict[str, dict[str, list[Tensor]]] = {name: {"train": [], "test": []} for name in extractors}
    small: dict[str, list[Tensor]] = {"train": [], "test": []}
    for split, stored in splits.items():
        for part in stored["sample"].split(shards.rows_per_chunk(spec.size)):
            images = decode(part)
            for name, extract in extractors.items():
                parts[name][split].append(extract(images))
            if spec.classes:
                small[split].append(shrunk(part))

    classifier = None
    if spec.classes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = Classifier(spec.shape, len(spec.classes), cfg.classifier.width).to(device)
        with devices.configured(device, deterministic=True):
            fit(classifier, torch.cat(small["train"]), train["label"], decode, cfg.classifier, seed)
        extract = extractors["classifier"] = _of_classifier(classifier, device)
        parts["classifier"] = {split: [extract(decode(part)) for part in small[split]] for split in splits}

    about: dict[str, Any] = {
        "spec": json.loads(spec.to_json()),
        "examples": {split: len(stored["sample"]) for split, stored in splits.items()},
        "inception": cfg.inception,
        "spaces": {},
        "classifier": None,
    }
    (directory / "features").mkdir(parents=True)
    for name, extract in extractors.items():
        features = {split: torch.cat(found) for split, found in parts[name].items()}
        _save(features, directory / "features" / f"{name}.safetensors")
        about["spaces"][name] = {"size": list(extract.size), "features": features["train"].shape[1]}

    if classifier is not None:
        weights = {key: value.cpu().contiguous() for key, value in classifier.state_dict().items()}
        _save(weights, directory / "classifier.safetensors")
        _save({split: stored["label"] for split, stored in splits.items()}, directory / "labels.safetensors")
        with torch.inference_mode():
            predicted = classifier.cpu().classify(features["test"]).argmax(1)  # its space comes last
        right = predicted == test["label"]
        about["classifier"] = {
            "width": cfg.classifier.width,
            "test_accuracy": round(float(right.double().mean()), 4),
            "test_accuracy_of_class": {
                name: round(float(right[test["label"] == label].double().mean()), 4)
                for label, name in enumerate(spec.classes)
                if (test["label"] == label).any()
            },
        }
        with (directory / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["actual", "predicted"])
            pairs = zip(test["label"].tolist(), predicted.tolist(), strict=True)
            rows.writerows([spec.classes[a], spec.classes[b]] for a, b in pairs)
    (directory / "reference.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises OSError, which safetensors does not on a full disk."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def _extractors(
    spec: Spec, inception_file: str | None, classifier: Classifier | None, device: torch.device
) -> dict[str, Callable[[], Extractor]]:
    """The spaces there are, and how to come by the network of each."""
    made: dict[str, Callable[[], Extractor]] = {"efficientnet_lite0": lambda: efficientnet_lite0(device)}
    if inception_file is not None:
        made["inception"] = lambda: inception(inception_file, device)
    if classifier is not None:
        made["classifier"] = lambda: _of_classifier(classifier, device)
    return made


def _of_classifier(classifier: Classifier, device: torch.device) -> Extractor:
    return Extractor("classifier", classifier.size, classifier.features, device)


def _when_needed(make: Callable[[], Extractor]) -> Callable[[Tensor], Tensor]:
    """The extractor's function; its network is loaded at the first call."""
    made = functools.cache(make)
    return lambda images: made()(images)
