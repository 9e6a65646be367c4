"""Carrying a decision of the gate out, also where several processes register at once.

MLflow cannot move an alias on the condition that it still points where it did, so `_promote_or_refuse` reads it again
right before it moves it, and `_settle_race` looks afterwards for who did the same:

- An alias that somebody moves while models are compared is respected: the comparison is made again, with the champion
  of now.
- However many versions are promoted at once, the aliases and the decisions end as if they had been registered one
  after the other, in the order of their numbers: whoever moves the alias last sees the claims of all others. Each
  process applies its own gate; if the gates differ, so may the decisions.
- A process that is killed right after it moved the alias leaves the version that came later as the champion, until
  its stage is run again.
- Not guaranteed: a person's move in the milliseconds between the last reading and the move is overwritten.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from ganlib.config import Params
from ganlib.export import Generator
from pipelines import model_registry
from pipelines.gate import CHAMPION, Decision, Metrics, decide, decide_between
from pipelines.model_registry import Version
from pipelines.tracking import Store

__all__ = ["TERMS", "settle"]

PREVIOUS = "previous_champion"
TERMS = "gate.terms"  # set last: the gate whose decision has been carried out
BEFORE = "gate.before"  # the versions whose promotion had been carried out when this one was promoted


def settle(
    store: Store,
    params: Params,
    version: Version,
    generator: Generator,
    metrics: Metrics,
    faults: Sequence[str] = (),
) -> Decision:
    """The decision on `version`: the one that stands, or, under another gate, a new one, carried out. `faults` refuse
    it whatever the metrics say."""
    terms = json.dumps(params.gate.model_dump(mode="json"))
    if version.tags.get(TERMS) == terms:
        return Decision.from_tags(version.tags)
    champion = model_registry.version_by_alias(store, version.model, CHAMPION)
    if _same(champion, version) and "gate.decision" in version.tags:
        # killed after the last alias moved, or the gate has changed since
        decision = Decision.from_tags(version.tags)
        before = None if TERMS in version.tags else json.loads(version.tags.get(BEFORE, "null"))
    else:
        decision, before = _promote_or_refuse(store, params, version, generator, metrics, faults)
    if decision.decision == "promoted" and before is not None:
        decision = _settle_race(store, params, version, decision, before)
    model_registry.tag_version(store, version, {TERMS: terms})
    return decision


def _promote_or_refuse(
    store: Store, params: Params, version: Version, generator: Generator, metrics: Metrics, faults: Sequence[str]
) -> tuple[Decision, list[int]]:
    """Decide against a champion that is still the champion then, and move the aliases.

    Also returns the numbers of the versions whose promotion was over before this one's claim.
    """
    decision, before = None, list[int]()
    while True:
        champion = model_registry.version_by_alias(store, version.model, CHAMPION)
        holds = _same(champion, version)
        if holds and decision is not None:  # another process found our claim, and moved the alias to us
            return decision, before
        decision = decide(store, params, None if holds else champion, generator, metrics, faults)
        before = [one.number for one in _promoted(store, version.model) if TERMS in one.tags]
        # the claim: whoever moves the alias after us finds it
        model_registry.tag_version(store, version, {BEFORE: json.dumps(before), **decision.tags()})
        if not _same(model_registry.version_by_alias(store, version.model, CHAMPION), champion):
            continue
        if decision.decision == "promoted" and not holds:
            if champion is not None:
                model_registry.set_alias(store, champion, PREVIOUS)
            model_registry.set_alias(store, version, CHAMPION)
        return decision, before


def _settle_race(store: Store, params: Params, version: Version, decision: Decision, before: list[int]) -> Decision:
    """The decision on a promoted version once those that were promoted at the same time are known.

    They are compared in the order of their numbers, and the aliases set to what comes of it. An alias that points
    elsewhere was moved by a person, or by the gate over one of them, and stays.
    """
    displaced = decision.champion_version
    version = dataclasses.replace(version, tags=decision.tags())
    known: set[int] = set()
    while True:
        rivals = _rivals(store, version, displaced, before)
        if known >= {one.number for one in rivals}:
            return decision
        known = {one.number for one in rivals}
        order = sorted([version, *rivals], key=lambda one: one.number)
        holder, previous = order[0], displaced
        outcomes = []
        for challenger in order[1:]:
            outcome = decide_between(store, params, holder, challenger)
            outcomes.append((challenger, outcome))
            if outcome.decision == "promoted":
                holder, previous = challenger, holder.number
        champion = model_registry.version_by_alias(store, version.model, CHAMPION)
        if champion is None or champion.number not in {one.number for one in order}:
            return decision
        if previous is not None:
            model_registry.set_alias(store, Version(version.model, previous, {}), PREVIOUS)
        model_registry.set_alias(store, holder, CHAMPION)
        # after the aliases: a process that is killed in between finds the same rivals again
        for challenger, outcome in outcomes:
            model_registry.tag_version(store, challenger, outcome.tags())
            if challenger.number == version.number:
                decision = outcome


def _rivals(store: Store, version: Version, displaced: int | None, before: list[int]) -> list[Version]:
    """The versions promoted over `displaced`, `version` or one another since `before` was read, without `version`."""
    since = [one for one in _promoted(store, version.model) if one.number not in (*before, version.number)]
    over = {one.number: Decision.from_tags(one.tags).champion_version for one in since}
    found: set[int | None] = set()
    while more := {number for number in over if over[number] in {displaced, version.number} | found} - found:
        found |= more
    return [one for one in since if one.number in found]


def _promoted(store: Store, model: str) -> list[Version]:
    return model_registry.versions(store, model, "gate.decision", "promoted")


def _same(one: Version | None, other: Version | None) -> bool:
    return (one and one.number) == (other and other.number)
