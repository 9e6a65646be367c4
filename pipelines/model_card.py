"""The model card of a generator: what it is for, what it was made of, what it cannot do, whether it copies.

Mitchell et al. 2019. It is the description of a registered version and the first part of its report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ganlib.export import Generator

__all__ = ["Card", "Metrics", "markdown", "model_card"]

Metrics = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""section, metric, figure"""

Card = list[tuple[str, list[str]]]
"""sections: a heading, and paragraphs"""


def model_card(generator: Generator, metrics: Metrics, data: Mapping[str, Any]) -> Card:
    """Of a generator, its metrics, and the data card (`card.json` of the stage `prepare`)."""
    spec, about = generator.spec, generator.about
    shape, given = " x ".join(map(str, spec.shape)), bool(spec.given)
    more = f" It is class-conditional: {len(spec.classes)} classes." if generator.conditional else ""
    more += f" It is conditional on {', '.join(spec.attributes)}." if generator.game.attributes else ""
    more += f" Its training started from the weights of {about['parent']}." if "parent" in about else ""
    what = (
        f"A generative adversarial network, {about.get('model', 'of an unknown family')}, trained on "
        f"{about.get('data', 'unknown data')} for {about.get('kimg', 0):g} thousand examples, seed "
        f"{about.get('seed', 0)}. It makes {spec.modality} data, [{shape}] as the network sees it"
        f"{', of what it is given' if given else ', of noise'}.{more}"
    )
    use = (
        "To turn what it is given into samples like those of the training data: for previews, research, and tests of "
        "software."
        if given
        else "To draw samples that resemble the training data, where real ones are not needed or cannot be shared: "
        "research, tests of software, teaching, more data for a model that is then tested on real data."
    )
    licence = data.get("licence")
    return [
        ("Model", [what]),
        (
            "Intended use",
            [
                use,
                "Not for: passing samples off as records, measurements or pictures of anything real; decisions about "
                "people; data of another source or kind than it was trained on.",
            ],
        ),
        ("Data and licence", [_of_data(data, spec.content_hash), _of_licence(licence)]),
        ("Limits", _limits(generator, metrics)),
        ("Memorisation audit", _memorisation(metrics)),
    ]


def markdown(card: Card) -> str:
    """The card as Markdown."""
    return "\n\n".join("\n\n".join([f"## {heading}", *paragraphs]) for heading, paragraphs in card) + "\n"


def _of_data(data: Mapping[str, Any], content_hash: str) -> str:
    source = data.get("source", {})
    splits = data.get("splits", {})
    counts = ", ".join(f"{about['examples']} {name}" for name, about in splits.items())
    return (
        f"{source.get('about') or source.get('name', 'Source not recorded')}: {counts or 'counts not recorded'} "
        f"examples; {data.get('duplicates', 0)} duplicates and {data.get('rejected', 0)} unreadable items were left "
        f"out. SHA-256 over all examples: {content_hash}."
    )


def _of_licence(licence: str | None) -> str:
    if licence is None:
        return "The licence of the data is not stated: find it out before samples or the model are passed on."
    return f"Licence of the data: {licence}. Samples and the model may be bound by it."


def _limits(generator: Generator, metrics: Metrics) -> list[str]:
    """What the model does not do, by its figures, each next to what real data score."""
    found = ["It knows nothing but its training data: what is rare or missing there is rare or missing in samples."]
    meanings = {
        "coverage": "of test examples have a sample nearby",
        "label_accuracy": "of samples are taken for the class that was asked for",
        "c2st": "of real and generated examples are classified correctly as real or generated; 0.5 is chance",
        "psnr": "dB is the likeness to the target",
    }
    for name, meaning in meanings.items():
        section, figures = _first(metrics, name)
        if figures is not None:
            found.append(f"{_figure(figures)} {meaning} ({section}).")
    if generator.translates:
        found.append("What is not in the given part is guessed: details in a sample are plausible, not true.")
    return found


def _memorisation(metrics: Metrics) -> list[str]:
    found = []
    section, ratio = _first(metrics, "memorisation_ratio")
    if ratio is not None:
        found.append(
            f"Samples are {_figure(ratio)} times as far from the nearest training example as test examples are "
            f"({section}); well below 1 is copying."
        )
    section, copied = _first(metrics, "copied")
    if copied is not None:
        found.append(
            f"{_figure(copied)} of samples equal a training example, less the share of test examples that do "
            f"({section})."
        )
    if not found:
        return ["Not measured for data of this kind. Compare samples with their nearest training examples."]
    return [*found, "This finds copies that are near in these features. It is no guarantee of privacy."]


def _first(metrics: Metrics, name: str) -> tuple[str, Mapping[str, float | None] | None]:
    return next(((section, named[name]) for section, named in metrics.items() if name in named), ("", None))


def _figure(figures: Mapping[str, float | None]) -> str:
    """A value, its interval, and what real data score."""
    low, high, floor = (figures.get(name) for name in ("low", "high", "floor"))
    value = figures["value"]
    said = [] if low is None or high is None else [f"{low:.3g} to {high:.3g}"]
    said += [] if floor is None else [f"real data {floor:.3g}"]
    shown = "unknown" if value is None else f"{value:.3g}"
    return f"{shown} ({'; '.join(said)})" if said else shown
