"""`params.yaml` and the files of `params/` as frozen, closed models: all errors are reported before any work starts.

Those files state the meaning and unit of each key; this one has types and bounds.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ganlib import registry
from ganlib._config import Config, refuse_moved
from ganlib.augment import AugmentConfig
from ganlib.data import _kind
from ganlib.game import OPTIMIZERS
from ganlib.health import HealthConfig
from ganlib.losses import LOSSES
from ganlib.penalties import MOVE, PENALTIES
from ganlib.schedules import Schedule

__all__ = [
    "BudgetConfig",
    "ClassifierConfig",
    "Config",
    "ConfigError",
    "DatasetConfig",
    "EvaluateConfig",
    "FitConfig",
    "GateConfig",
    "ModelConfig",
    "Params",
    "PlayerConfig",
    "ReferenceConfig",
    "ResolvedScale",
    "ScaleConfig",
    "Search",
    "TrackingConfig",
    "TrainConfig",
    "load_params",
    "override",
    "parse_params",
    "read_params",
]

LEAST_SAMPLES = 10
"""to be judged at a time"""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class ConfigError(ValueError):
    """Something a person wrote is wrong. The message is one line a fault: key, what was found, what is allowed."""


def _registered(kind: str, key: str) -> BeforeValidator:
    """Validate `{key: NAME, ...}` by the `Config` of the file `ganlib/{kind}/NAME.py`, whose first field is `key`."""

    def validate(value: Any) -> Config:
        if isinstance(value, Config):
            return value
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(
                f"expected a mapping with the key '{key}'; '{key}' is one of: {', '.join(registry.names(kind))}"
            )
        config: Config = registry.load(kind, str(value[key])).Config.model_validate(dict(value))
        return config

    return BeforeValidator(validate)


def _one_of(table: Mapping[str, Any]) -> BeforeValidator:
    def validate(name: Any) -> Any:
        if not isinstance(name, str) or name not in table:
            raise ValueError(f"{name!r} is not known{registry.nearest(str(name), table)}; known: {', '.join(table)}")
        return name

    return BeforeValidator(validate)


def _name(pattern: str, allowed: str) -> AfterValidator:
    def validate(name: str) -> str:
        if not re.fullmatch(pattern, name):
            raise ValueError(f"a name is made of {allowed}")
        return name

    return AfterValidator(validate)


def _auto_or(kind: Any, expected: str) -> BeforeValidator:
    number = TypeAdapter(kind)

    def validate(value: Any) -> Any:
        try:
            return value if value == "auto" else number.validate_python(value)
        except ValidationError:
            raise ValueError(f"expected auto or {expected}") from None

    return BeforeValidator(validate)


def _ends(number: Any) -> AfterValidator:
    """Both ends of a schedule have to be what the number in its place has to be."""
    allowed = TypeAdapter(number)

    def validate(value: Any) -> Any:
        for name in ("start", "end") if isinstance(value, Schedule) else ():
            try:
                allowed.validate_python(getattr(value, name))
            except ValidationError as error:
                raise ValueError(f"{name}: {error.errors()[0]['msg']}, found {getattr(value, name):g}") from error
        return value

    return AfterValidator(validate)


# DVC takes a dot in the name of a section for a section in a section.
SectionName = Annotated[str, _name(r"[\w-]+", "letters, digits, _ and -")]
ModelName = Annotated[str, _name(r"[\w-][\w.-]*", "letters, digits, _, - and, after the first, dots")]


Kimg = Annotated[
    float | Literal["auto"], _auto_or(Annotated[float, Field(gt=0, allow_inf_nan=False)], "a finite number above 0")
]


class BudgetConfig(Config):
    """How long `train.kimg: auto` trains on these data, and how few are augmented; the stage `prepare` resolves it."""

    kimg: Kimg = 180.0
    augment: Literal["auto"] | None = None


class DatasetConfig(Config):
    source: Annotated[SerializeAsAny[Config], _registered("sources", "name")]
    sample: Annotated[SerializeAsAny[Config], _registered("data", "kind")]
    normal: tuple[str | int | float, ...] = ()
    unlabelled: Literal["reject", "keep"] = "reject"
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    max_reject_share: Share = 0.01
    shard_mb: PositiveFloat = 64.0
    budget: BudgetConfig = BudgetConfig()
    licence: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_unlabelled(self) -> DatasetConfig:
        if self.normal and self.unlabelled == "keep":
            raise ValueError(
                "unlabelled: keep cannot be combined with normal: an example without a label is neither normal nor an "
                "anomaly; set reject, and max_reject_share to at least their share"
            )
        return self

    @field_validator("test_share")
    @classmethod
    def _source_has_none(cls, share: float, info: ValidationInfo) -> float:
        """Refuse `test_share` where the source has its own, which counts."""
        source = info.data.get("source")
        own = getattr(source, "test_share", share)
        if share not in (own, cls.model_fields["test_share"].default):
            raise ValueError(f"source {source.name!r} has a test_share of its own; set source.test_share instead")  # type: ignore[union-attr]
        return share

    @field_validator("sample", mode="before")
    @classmethod
    def _fed_by_the_source(cls, sample: Any, info: ValidationInfo) -> Any:
        """Check the kind before its section is read: a wrong kind would otherwise be reported as wrong keys."""
        kind = sample.get("kind") if isinstance(sample, Mapping) else getattr(sample, "kind", None)
        if "source" in info.data and kind in registry.names("data"):  # else that is the fault to tell
            source = info.data["source"].name
            encodes = _kind.load(kind).PAYLOADS
            payloads = getattr(registry.load("sources", source), "KINDS", (encodes,))
            if encodes not in payloads:
                suit = ", ".join(name for name in registry.names("data") if _kind.load(name).PAYLOADS in payloads)
                fault = PydanticCustomError("kind", f"{kind!r} does not suit; source {source!r} feeds {suit}")
                details = InitErrorDetails(type=fault, loc=("kind",), input=sample)
                raise ValidationError.from_exception_data("sample", [details])
        return sample


class PenaltyConfig(Config):
    """What every penalty has; `_penalty_config` adds the options of a particular one."""

    weight: Annotated[NonNegativeFloat | Schedule, _ends(NonNegativeFloat)]
    every: PositiveInt = 1

    @property
    def options(self) -> dict[str, Any]:
        """The arguments for the constructor of the penalty."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in PenaltyConfig.model_fields}


def _penalty_config(penalty: Callable[..., Any]) -> type[PenaltyConfig]:
    """`PenaltyConfig` and, for a class, the arguments of its constructor, with their types, bounds and defaults."""
    if not isinstance(penalty, type):
        return PenaltyConfig
    arguments = inspect.signature(penalty, eval_str=True).parameters.values()
    options: dict[str, Any] = {argument.name: (argument.annotation, argument.default) for argument in arguments}
    return create_model(f"{penalty.__name__}Config", __base__=PenaltyConfig, **options)


_PENALTY_CONFIGS = {name: _penalty_config(penalty) for name, penalty in PENALTIES.items()}


def _read_penalty(named: Any) -> PenaltyConfig:
    """`(name, section)` by the `PenaltyConfig` of that name."""
    name, section = named
    return _PENALTY_CONFIGS.get(name, PenaltyConfig).model_validate(section)  # the key's own check refuses other names


class PlayerConfig(Config):
    """How one player learns."""

    optimizer: Annotated[str, _one_of(OPTIMIZERS)] = "adam"
    lr: Annotated[PositiveFloat | Schedule, _ends(NonNegativeFloat)] = 2e-4
    betas: tuple[Share, Annotated[Share | Schedule, _ends(Share)]] = (0.5, 0.99)
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None


class FitConfig(PlayerConfig):
    """How, and for how long, one module learns alone."""

    kimg: NonNegativeFloat


class Search(Config):
    """One dimension of a search space; exactly one of the four is given."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    randint: tuple[int, int] | None = None
    choice: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Search:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of uniform, loguniform, randint, choice; found {given or 'none'}")
        bounds = self.uniform or self.loguniform or self.randint
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"the lower bound must lie below the upper; found {list(bounds)}")
        if self.choice == ():
            raise ValueError("choice needs at least one value")
        return self

    @model_serializer(mode="wrap")
    def _what_is_given(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialise(self).items() if value is not None}

    @property
    def examples(self) -> tuple[Any, ...]:
        """The least and the largest of its values, or all."""
        if self.randint:
            return self.randint[0], self.randint[1] - 1
        return self.uniform or self.loguniform or self.choice or ()

    @property
    def is_of_fractions(self) -> bool:
        return self.uniform is not None or self.loguniform is not None


class WarmupConfig(Config):
    """A phase in which the discriminator alone learns."""

    accuracy: Annotated[float, Field(gt=0.5, lt=1.0)]
    max_kimg: PositiveFloat


_TopShare = Annotated[float, Field(gt=0.0, le=1.0)]


class ModelConfig(Config):
    """A family's networks and the game it plays."""

    network: Annotated[SerializeAsAny[Config], _registered("models", "family")]
    loss: Annotated[str, _one_of(LOSSES)] = "non_saturating"
    penalties: dict[
        Annotated[str, _one_of(PENALTIES)], Annotated[SerializeAsAny[PenaltyConfig], BeforeValidator(_read_penalty)]
    ] = Field(default_factory=dict)
    augment: AugmentConfig | None = None
    mirror: bool = False
    batch: PositiveInt = 64
    discriminator_steps: PositiveInt = 1
    top_k: Annotated[_TopShare | Schedule, _ends(_TopShare)] = 1.0
    warmup: WarmupConfig | None = None
    fits: dict[str, FitConfig] = Field(default_factory=dict)
    ema_halflife_kimg: Annotated[NonNegativeFloat | Schedule, _ends(NonNegativeFloat)] = 2.0
    ema_rampup: PositiveFloat | None = None
    generator: PlayerConfig = PlayerConfig()
    discriminator: PlayerConfig = PlayerConfig()
    search: dict[str, Search] = Field(default_factory=dict)

    @property
    def may_be_augmented(self) -> bool:
        """Whether it says nothing of augmentation, and has no penalty that moves images in a way of its own."""
        return self.augment is None and not MOVE & self.penalties.keys()

    @field_validator("penalties", mode="before")
    @classmethod
    def _named(cls, penalties: Any) -> Any:
        return _with_names(penalties)

    @model_validator(mode="after")
    def _can_be_searched(self) -> ModelConfig:
        for dotted, dimension in self.search.items():
            section = self.model_dump(mode="json", exclude={"search"})
            *_, leaf = dotted.split(".")
            try:
                now = (around := _parent(section, dotted)).get(leaf)
                for example in dimension.examples:
                    around[leaf] = example
                    ModelConfig.model_validate(section)
                if isinstance(now, int) and not isinstance(now, bool) and dimension.is_of_fractions:
                    raise ValueError("is a whole number; search it by randint or choice")
            except ValidationError as error:
                raise ValueError(next(_explain(f"search.{dotted}", error))) from error
            except ValueError as error:
                raise ValueError(f"search.{dotted}: {error}") from error
        return self


class ClassifierConfig(Config):
    width: PositiveInt = 16
    epochs: PositiveInt = 8
    batch: PositiveInt = 64
    lr: PositiveFloat = 4e-3


def _with_names(sections: Any) -> Any:
    """Tell each section its name, which says what it may hold."""
    return {name: (name, section) for name, section in sections.items()} if isinstance(sections, Mapping) else sections


def _read_space(named: Any) -> Config:
    """`(name, section)` by the `Config` of the feature space of that name, in any folder of spaces."""
    if isinstance(named[1], Config):
        return named[1]
    name, section = named
    everywhere = registry.places("spaces")
    if name not in everywhere:
        known = ", ".join(sorted(everywhere))
        raise ValueError(f"{name!r} is not a feature space{registry.nearest(str(name), everywhere)}; known: {known}")
    config: Config = registry.load("spaces", name, everywhere[name]).Config.model_validate(section or {})
    return config


def _metric(name: str) -> str:
    """A metric's name, in any folder of metrics."""
    known = registry.places("metrics")
    if name not in known:
        raise ValueError(f"{name!r} is not a metric{registry.nearest(name, known)}; known: {', '.join(sorted(known))}")
    return name


class ReferenceConfig(Config):
    max_samples: Annotated[int, Field(ge=10)] = 50_000
    classifier: ClassifierConfig = ClassifierConfig()
    spaces: dict[str, Annotated[SerializeAsAny[Config], BeforeValidator(_read_space)]] = Field(default_factory=dict)

    @field_validator("spaces", mode="before")
    @classmethod
    def _named(cls, spaces: Any) -> Any:
        return _with_names(spaces)

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, section: Any) -> Any:
        return refuse_moved(section, {"inception": "spaces.inception.file"})


def _none_or_enough(samples: int) -> int:
    if 0 < samples < LEAST_SAMPLES:
        raise ValueError(f"expected 0, to judge none, or at least {LEAST_SAMPLES}: fewer have no spread to measure")
    return samples


class TrainConfig(Config):
    kimg: Kimg
    accumulate: PositiveInt = 1
    report_kimg: PositiveFloat = 10.0
    checkpoint_kimg: PositiveFloat = 50.0
    keep: Literal["best", "last"] = "best"
    init: Annotated[str, Field(min_length=1)] | None = None
    freeze: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    quality_samples: Annotated[NonNegativeInt, AfterValidator(_none_or_enough)] = 1000
    health: HealthConfig = HealthConfig()
    memory_mb: PositiveFloat = 2048.0
    amp: bool | Literal["auto"] = "auto"
    deterministic: bool = True
    cuda_graphs: bool = True
    device_memory_mb: NonNegativeFloat = 2048.0
    channels_last: bool = True
    compile: bool = False

    @model_validator(mode="after")
    def _frozen_is_the_parents(self) -> TrainConfig:
        if self.freeze and self.init is None:
            raise ValueError("freeze: without init there are no weights of a parent to keep; set train.init")
        return self

    @property
    def game_kimg(self) -> float:
        """The budget of the game. Raises ConfigError where it is `auto`, which the stages resolve."""
        if isinstance(self.kimg, str):
            raise ConfigError("train.kimg: auto is resolved by the stages, of prepared data; expected a number here")
        return self.kimg


class TuneConfig(Config):
    num_samples: NonNegativeInt
    kimg: PositiveFloat
    report_kimg: PositiveFloat
    grace_kimg: PositiveFloat
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    quality_samples: Annotated[int, Field(ge=64)] = 1000
    bracket_size: PositiveInt = 16


class EvaluateConfig(Config):
    num_samples: Annotated[int, Field(ge=LEAST_SAMPLES)] = 1000
    resamples: Annotated[int, Field(ge=2)] = 50
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    batch: PositiveInt = 100


class GateConfig(Config):
    """When a challenger becomes the champion."""

    metric: Annotated[str, Field(pattern=r"^\w+(/.+)?\.\w+$")] | None = None
    margin: NonNegativeFloat = 0.0
    at_least: dict[Annotated[str, AfterValidator(_metric)], float] = Field(
        default={"coverage": 0.3, "memorisation_ratio": 0.5, "label_accuracy": 0.5}
    )
    at_most: dict[Annotated[str, AfterValidator(_metric)], float] = Field(default={})
    # the names of ganlib.graph.FORMATS, not imported: stages would then depend on all that makes graphs
    export: tuple[Literal["onnx", "torch"], ...] = ("onnx", "torch")
    approval: Literal["automatic", "human"] = "automatic"

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, section: Any) -> Any:
        names = ("coverage", "memorisation_ratio", "label_accuracy")
        return refuse_moved(section, {f"min_{name}": f"at_least.{name}" for name in names})


class TrackingConfig(Config):
    experiment: Annotated[str, Field(min_length=1)] = "ganlib"
    registered_model: ModelName | None = None
    uri: str | None = None


GpuShare = Annotated[float, Field(ge=0.0, le=1.0)]


def _in_order(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError("the least comes first")
    return bounds


_Range = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_in_order)]


class ScaleConfig(Config):
    """Where the work runs; nothing here changes what is computed, so DVC does not track it."""

    num_workers: Annotated[
        int | tuple[int, int] | Literal["auto"],
        _auto_or(NonNegativeInt | _Range, "a whole number, or [least, most]"),
    ] = "auto"
    """0: the process of the stage, without Ray Train"""
    cpus_per_worker: PositiveInt = 1
    gpus_per_worker: Annotated[float | Literal["auto"], _auto_or(GpuShare, "a number from 0 to 1")] = "auto"
    workers_per_trial: PositiveInt = 1
    max_concurrent_trials: NonNegativeInt = 0
    max_failures: NonNegativeInt = 3
    wait_seconds: NonNegativeFloat = 300.0
    ray_address: str | None = None
    storage: str | None = None

    @property
    def min_workers(self) -> int:
        """The number of workers as far as it is known without a cluster: 1 where it is not."""
        return max(1, self.num_workers) if isinstance(self.num_workers, int) else 1


class ResolvedScale(ScaleConfig):
    """With numbers in place of `auto`: `pipelines.scale.resolve_scale`."""

    num_workers: PositiveInt
    gpus_per_worker: GpuShare


CHOICES = {"data": "datasets", "model": "models", "preset": "presets"}
"""keys of `params.yaml` that choose, and the folders of `params` whose files they choose from"""


class Params(Config):
    """`params.yaml`, and every file of the folder `params` next to it by its name."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # what NumPy and scikit-learn take, too
    data: str
    model: str
    preset: str = "none"
    datasets: dict[SectionName, DatasetConfig]
    models: dict[SectionName, ModelConfig]
    presets: dict[SectionName, dict[str, Any]] = Field(default={"none": {}})
    reference: ReferenceConfig = ReferenceConfig()
    tune: TuneConfig
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    tracking: TrackingConfig = TrackingConfig()
    scale: ScaleConfig = ScaleConfig()

    @model_validator(mode="before")
    @classmethod
    def _section_names_are_families(cls, data: Any) -> Any:
        """Have `models.NAME.network` read by the `Config` of `ganlib/models/NAME.py`."""
        if not isinstance(data, Mapping) or not isinstance(data.get("models"), Mapping):
            return data
        models = {
            name: {**section, "network": {"family": name, **(section.get("network") or {})}}
            if isinstance(section, Mapping) and isinstance(section.get("network") or {}, Mapping)
            else section
            for name, section in data["models"].items()
        }
        return {**data, "models": models}

    @model_validator(mode="after")
    def _choices_exist(self) -> Params:
        for key, folder in CHOICES.items():
            name, known = getattr(self, key), getattr(self, folder)
            if name not in known:
                raise ValueError(f"{key}: {_no_file(folder, name, known)}")
        self.game  # noqa: B018 - the preset has to suit the model
        for preset in self.presets:
            for model in self._models_of(preset):
                self._laid_over(preset, model)
        return self

    @property
    def dataset(self) -> DatasetConfig:
        return self.datasets[self.data]

    @property
    def game(self) -> ModelConfig:
        """The chosen model's section with the chosen preset laid over it.

        What a preset says of networks and players is added key by key; all else it says replaces what was there.
        """
        suits = self._models_of(self.preset)
        if self.model not in suits:
            raise ValueError(f"preset: {self.preset!r} is for {', '.join(suits)}; model is {self.model!r}")
        return self._laid_over(self.preset, self.model)

    def _models_of(self, preset: str) -> list[str]:
        """The models that a preset names, or all if it names none."""
        suits = self.presets[preset].get("models", list(self.models))
        if not isinstance(suits, list):
            raise ValueError(f"presets.{preset}.models: expected a list, found {suits!r}")
        for model in map(str, suits):
            if model not in self.models:
                raise ValueError(f"presets.{preset}.models: {_no_file('models', model, self.models)}")
        return suits

    def _laid_over(self, preset: str, model: str) -> ModelConfig:
        said = {key: new for key, new in self.presets[preset].items() if key != "models"}
        if not said:
            return self.models[model]
        section = self.models[model].model_dump(mode="json")
        for key, new in said.items():
            merged = key in ("network", "generator", "discriminator", "fits") and isinstance(new, Mapping)
            section[key] = {**section[key], **new} if merged else new
        if "search" not in said:  # what was replaced may have taken with it what was to be searched
            section["search"] = {key: found for key, found in section["search"].items() if _has_parent(section, key)}
        try:
            return ModelConfig.model_validate(section)
        except ValidationError as error:
            raise ValueError(next(_explain(f"presets.{preset}: on models.{model}", error))) from error

    def chosen(self) -> dict[str, Any]:
        """What a run uses, as plain data that `parse_params` reads.

        Of data sets, models and presets that is the chosen one; the preset is laid over the model.
        """
        return self.model_dump(mode="json") | {
            "datasets": {self.data: self.dataset.model_dump(mode="json")},
            "models": {self.model: self.game.model_dump(mode="json")},
            "presets": {self.preset: {}},
        }

    @property
    def model_file(self) -> str:
        """Where the model's settings stand, as errors name it."""
        return f"params/models/{self.model}.yaml"

    @property
    def budget_kimg(self) -> float:
        """The budget of a training with its fits."""
        return self.train.game_kimg + sum(fit.kimg for fit in self.game.fits.values())

    @property
    def registered_model(self) -> str:
        return self.tracking.registered_model or f"ganlib-{self.data}"


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a params file and the folder `params` next to it. Raises ConfigError, with one line for each
    fault, which names the file."""
    return parse_params(read_params(path), where=str(path), folder=Path(path).with_name("params"))


def read_params(path: str | Path = "params.yaml") -> dict[str, Any]:
    """A params file and the folder `params` next to it as one mapping, not yet validated. Raises ConfigError."""
    raw = _read_mapping(Path(path))
    folder = Path(path).with_name("params")
    if moved := [name for name in CHOICES.values() if name in raw]:
        lines = (f"{path}: {name}: each is a file now: {folder / name}/NAME.yaml" for name in moved)
        raise ConfigError("\n".join(lines))
    for name in CHOICES.values():
        if not (folder / name).is_dir():
            raise ConfigError(f"{folder / name}: no such folder; it holds a file for each of the {name}")
        files = sorted(file for file in (folder / name).glob("*.yaml") if not file.name.startswith("."))
        raw[name] = {file.stem: _read_mapping(file) for file in files}
    return raw


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    except (ValueError, KeyError, RecursionError) as error:  # a date, a tag or a depth that there is not
        raise ConfigError(f"{path}: not YAML that can be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(raw).__name__}")
    return raw


def _no_file(folder: str, name: str, known: Mapping[str, Any]) -> str:
    nearest = registry.nearest(name, known)
    return f"there is no params/{folder}/{name}.yaml{nearest}; known: {', '.join(known)}"


def parse_params(raw: Any, where: str = "params.yaml", folder: Path | None = None) -> Params:
    """Validate plain data. Raises ConfigError, with one line for each fault, which names the file in `folder` that it
    stands in if one is given."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, error, folder))) from error


def override(params: Params, changes: Mapping[str, Any]) -> Params:
    """A copy of `params` with dotted keys of the chosen game replaced: `{"generator.lr": 1e-3}`.

    The preset goes into the model's section first, so that the changes have the last word.
    Raises ConfigError if a key is unknown to the section or a value is not allowed.
    """
    raw = params.model_dump(mode="json")
    raw["models"][params.model] = params.game.model_dump(mode="json")
    raw["preset"], raw["presets"] = "none", {"none": {}}
    section = raw["models"][params.model]
    for dotted, new in changes.items():
        *_, leaf = dotted.split(".")
        try:
            _parent(section, dotted)[leaf] = new
        except ValueError as error:
            raise ConfigError(f"models.{params.model}.{dotted}: {error}") from error
    return parse_params(raw, where=f"models.{params.model} with {dict(changes)}")


def _parent(section: dict[str, Any], dotted: str) -> dict[str, Any]:
    """The section in which a dotted key stands. Raises ValueError if there is none."""
    *parents, _ = dotted.split(".")
    for depth, parent in enumerate(parents):
        if not isinstance(section.get(parent), dict):
            where = ".".join(parents[: depth + 1])
            raise ValueError(
                f"there is no section '{where}'{registry.nearest(parent, section)}; known: {', '.join(section)}"
            )
        section = section[parent]
    return section


def _has_parent(section: dict[str, Any], dotted: str) -> bool:
    try:
        _parent(section, dotted)
    except ValueError:
        return False
    return True


# pydantic's marks in a path: of a fault in a key, and of what was tried where a number or a schedule may stand
_NUMBER = ("float", "constrained-float")
_MARKS = ("[key]", *_NUMBER, Schedule.__name__)


def _explain(where: str, error: ValidationError, folder: Path | None = None) -> Iterator[str]:
    """A line for each fault: where, the key, what is wrong. What stands in a file of `folder` is said to be there.

    What is no number is a schedule if it is a mapping, else it should have been a number.
    """
    for fault in error.errors():
        found = fault["input"]
        if isinstance(found, Mapping) and fault["type"] == "float_type" and fault["loc"][-1] in _NUMBER:
            continue
        if fault["type"] == "model_type" and fault["ctx"]["class_name"] == Schedule.__name__:
            continue
        keys = [str(part) for part in fault["loc"] if part not in _MARKS]
        message, place = fault["msg"].removeprefix("Value error, "), where
        if not keys and (named := re.match(r"(presets)\.([\w-]+)(?:\.(\w+))?: ", message)):
            keys, message = [key for key in named.groups() if key], message[named.end() :]
        if folder is not None and len(keys) > 1 and keys[0] in CHOICES.values():
            place, keys = f"{folder / keys[0] / keys[1]}.yaml", keys[2:]
        key = ".".join(keys)
        shown = "" if isinstance(found, Mapping | Config) or fault["type"] == "missing" else f" (found {found!r})"
        yield f"{place}: {key + ': ' if key else ''}{message}{shown}"
