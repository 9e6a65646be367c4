"""What generated data are measured against: features of the real data, computed once, and the in-domain classifier.

The folder holds `reference.json`, `features/SPACE.safetensors` (train and test), and where there are labels
`labels.safetensors`, `classifier.safetensors` and `confusion.csv`.
"""

from __future__ import annotations

import csv
import functools
import hashlib
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
from ganlib import health, registry, shards
from ganlib.config import ConfigError, ReferenceConfig
from ganlib.data._spec import NO_LABEL, Spec
from ganlib.metrics import class_coverage, fd, label_accuracy
from ganlib.spaces import _classifier
from ganlib.spaces._classifier import Classifier, fit, shrunk
from ganlib.spaces._extractor import Extractor

__all__ = ["LEAST", "Reference", "Space", "build", "spaces_of"]

LEAST = 10
"""examples in each split, at least, for neighbours and a covariance to mean something"""


@dataclass(frozen=True)
class Space:
    name: str
    extract: Callable[[Tensor], Tensor]
    """samples `[N, *shape]` as networks see them -> features `[N, D]`, on the CPU"""
    train: Tensor
    """`[N, D]`"""
    test: Tensor
    """`[M, D]`"""
    column: str = "features"
    """what metrics call them"""


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
        """Read what `build` wrote. Networks run on `device`, by default a GPU if there is one.

        Raises FileNotFoundError if there is no reference, ConfigError if a file that a space needs is gone.
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
        for name, found in about["spaces"].items():
            if name == "classifier" and classifier is not None:
                make = functools.partial(_of_classifier, classifier, device)
            else:
                make = functools.partial(_extractor, spec, name, found["config"], device)
            features = load_file(directory / "features" / f"{name}.safetensors")
            spaces[name] = Space(name, _when_needed(make), features["train"], features["test"], found["column"])
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
        """In which `quality` is judged: the classifier's, or the first of features."""
        if "classifier" in self.spaces:
            return self.spaces["classifier"]
        return next(space for space in self.spaces.values() if space.column == "features")

    def quality(self, features: Tensor, label: Tensor | None = None) -> dict[str, float]:
        """How good and how varied samples are, by their features `[N, D]` in `space` and, if class-conditional, by the
        classes `[N]` that were asked for.

        For use while training: against the training set. `quality/SPACE.fd` is infinite if a sample is not a number.
        """
        finite = bool(torch.isfinite(features).all())
        if not finite:
            return {f"quality/{self.space.name}.fd": math.inf}
        space = self.space
        reals = space.train[: len(features)]
        rows = health.evenly_spaced(len(reals))
        found = {
            f"quality/{space.name}.fd": self._distance(features, label),
            "diversity/features": health.diversity(features[rows], reals[rows]),
            "nearest_neighbour_ratio/features": health.nearest_neighbour_ratio(features[rows], reals[rows]),
            "rank/features": health.effective_rank(features) / max(health.effective_rank(reals), 1e-12),
        }
        if self.classifier is not None:
            real = {"predicted": self.predict(space.train)}
            fake = {"predicted": self.predict(features)}
            found["quality/class_coverage"] = class_coverage.compute(real, fake)
            if label is not None:
                found["quality/label_accuracy"] = label_accuracy.compute(real, {**fake, "label": label})
        return found

    def _distance(self, features: Tensor, label: Tensor | None) -> float:
        """The Fréchet distance to the training examples; where samples are compared by label, the mean of those."""
        if label is None or not self.spec.kind.BY_LABEL:
            return fd.distance(self._train, fd.gaussian(features))
        by_label = self._train_by_label
        found = [fd.distance(by_label[one], fd.gaussian(features[label == one])) for one in label.unique().tolist()]
        return math.fsum(found) / len(found)

    @functools.cached_property
    def _train(self) -> fd.Gaussian:
        return fd.gaussian(self.space.train)

    @functools.cached_property
    def _train_by_label(self) -> dict[int, fd.Gaussian]:
        train, label = self.space.train, self.labels["train"][: len(self.space.train)]
        return {one: fd.gaussian(train[label == one]) for one in label.unique().tolist()}


def build(
    directory: str | Path,
    spec: Spec,
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    cfg: ReferenceConfig,
    seed: int,
) -> dict[str, Any]:
    """Write the folder from the stored splits; returns `reference.json`.

    A split has `sample`, as stored, `[N, *stored]`, a tensor or `shards.LazyRows`, and `label`, int64 `[N]`, where
    labelled. Samples are read once and never held, except for the classifier's, at the size of its input.
    Raises ConfigError for data that have no feature space here, or too few of them, OSError if they cannot be written.
    """
    directory, device = Path(directory), devices.default_device()
    for split, stored in (("train", train), ("test", test)):
        if len(stored["sample"]) < LEAST:
            raise ConfigError(
                f"reference: the {split} split has {len(stored['sample'])} examples; at least {LEAST} are needed"
            )
    decode = functools.partial(spec.kind.decode, spec.sample, "sample")
    splits = {"train": train, "test": test}

    configs = spaces_of(spec, cfg)
    extractors = {name: _extractor(spec, name, config, device) for name, config in configs.items()}
    if not spec.classes and not any(extractor.column == "features" for extractor in extractors.values()):
        raise ConfigError(
            f"reference: no feature space for {spec.modality} data without labels; add one in ganlib/spaces/"
            f"{spec.kind.LOOKS}/"
        )
    shrink = shrunk if spec.kind.is_picture else lambda stored: stored
    parts: dict[str, dict[str, list[Tensor]]] = {name: {"train": [], "test": []} for name in extractors}
    small: dict[str, list[Tensor]] = {"train": [], "test": []}
    for split, stored in splits.items():
        for part in stored["sample"].split(shards.rows_per_chunk(spec.size)):
            chunk = decode(part)
            for name, extract in extractors.items():
                parts[name][split].append(extract(chunk))
            if spec.classes:
                small[split].append(shrink(part))

    classifier = None
    if spec.classes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = Classifier(spec.shape, len(spec.classes), cfg.classifier.width).to(device)
        with devices.configured(device, deterministic=True):
            known = train["label"] != NO_LABEL if spec.unlabelled else slice(None)
            fit(
                classifier,
                torch.cat(small["train"])[known],
                train["label"][known],
                decode,
                cfg.classifier,
                seed,
                shift=spec.kind.is_picture,
            )
        extract = extractors["classifier"] = _of_classifier(classifier, device)
        parts["classifier"] = {split: [extract(decode(part)) for part in small[split]] for split in splits}

    about: dict[str, Any] = {
        "spec": json.loads(spec.to_json()),
        "examples": {split: len(stored["sample"]) for split, stored in splits.items()},
        "spaces": {},
        "classifier": None,
    }
    (directory / "features").mkdir(parents=True)
    for name, extract in extractors.items():
        features = {split: torch.cat(found) for split, found in parts[name].items()}
        _save(features, directory / "features" / f"{name}.safetensors")
        about["spaces"][name] = {
            "size": list(extract.size),
            "features": features["train"].shape[1],
            "column": extract.column,
            "config": configs.get(name, {}),
            # so that what is made of the reference depends on no space that it does not use
            "code": _code(spec, name),
        }

    if classifier is not None:
        # its space comes last
        about["classifier"] = _write_classifier(directory, spec, classifier, features["test"], splits, cfg)
    (directory / "reference.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def _write_classifier(
    directory: Path,
    spec: Spec,
    classifier: Classifier,
    features: Tensor,
    splits: Mapping[str, Mapping[str, Any]],
    cfg: ReferenceConfig,
) -> dict[str, Any]:
    """Write the classifier, the labels and its confusion table of the test examples with these features. Returns its
    entry for `reference.json`."""
    weights = {key: value.cpu().contiguous() for key, value in classifier.state_dict().items()}
    _save(weights, directory / "classifier.safetensors")
    _save({split: stored["label"] for split, stored in splits.items()}, directory / "labels.safetensors")
    with torch.inference_mode():
        predicted = classifier.cpu().classify(features).argmax(1)
    test = splits["test"]["label"]
    known = test != NO_LABEL
    predicted, actual = predicted[known], test[known]
    right = predicted == actual
    with (directory / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["actual", "predicted"])
        pairs = zip(actual.tolist(), predicted.tolist(), strict=True)
        rows.writerows([spec.classes[a], spec.classes[b]] for a, b in pairs)
    return {
        "width": cfg.classifier.width,
        "test_accuracy": round(float(right.double().mean()), 4),
        "test_accuracy_of_class": {
            name: round(float(right[actual == label].double().mean()), 4)
            for label, name in enumerate(spec.classes)
            if (actual == label).any()
        },
    }


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises OSError, which safetensors does not on a full disk."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def spaces_of(spec: Spec, cfg: ReferenceConfig) -> dict[str, dict[str, Any]]:
    """The configuration of each feature space: those that suit the data and need none, and those that `cfg` names.

    Raises ConfigError for one that does not suit the data.
    """
    looks, found = spec.kind.LOOKS, dict[str, dict[str, Any]]()
    for name in registry.names("spaces", looks):
        fields = registry.load("spaces", name, looks).Config.model_fields.values()
        if name in cfg.spaces or not any(field.is_required() for field in fields):
            found[name] = cfg.spaces[name].model_dump(mode="json") if name in cfg.spaces else {}
    if strange := sorted(cfg.spaces.keys() - found.keys()):
        raise ConfigError(f"reference.spaces: {', '.join(strange)} does not suit {spec.modality} data")
    return found


def _extractor(spec: Spec, name: str, config: Mapping[str, Any], device: torch.device) -> Extractor:
    module = registry.load("spaces", name, spec.kind.LOOKS)
    extractor: Extractor = module.load(module.Config.model_validate(dict(config)), spec, device)
    return extractor


def _code(spec: Spec, name: str) -> str:
    """SHA-256 of a space's file and of what spaces share."""
    module = _classifier if name == "classifier" else registry.load("spaces", name, spec.kind.LOOKS)
    file = Path(str(module.__file__))
    shared = {path for folder in (Path(_classifier.__file__).parent, file.parent) for path in folder.glob("_*.py")}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted({file, *shared}))).hexdigest()


def _of_classifier(classifier: Classifier, device: torch.device) -> Extractor:
    return Extractor("classifier", classifier.size, classifier.features, device)


def _when_needed(make: Callable[[], Extractor]) -> Callable[[Tensor], Tensor]:
    """The extractor's function; its network is loaded at the first call."""
    made = functools.cache(make)
    return lambda samples: made()(samples)
