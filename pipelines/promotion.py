"""Carrying a decision of the gate out, also where several processes register at once.

MLflow cannot move an alias on the condition that it still points where it did, so `_promote_or_refuse` reads it again
right before it moves it, and `_settle_race` looks afterwards for who did the same:

- If an alias moves while models are compared, the comparison is made again, with the new champion.
- However many versions are promoted at once, the aliases and the decisions end as if they had been registered one
  after the other, in the order of their numbers: the process that moves the alias last sees the claims of all others.
  Each process applies its own gate; if the gates differ, so may the decisions.
- A process that is killed right after it moved the alias leaves the version that came later as the champion, until
  its stage is run again.
- Not guaranteed: a person's move in the milliseconds between the last reading and the move is overwritten.

With `gate.approval: human` what would be promoted is held, and no alias moves until `approve`. What people move is kept
with who, when and why as a tag of the version that became the champion; the gate's decision on it stays as it was.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from ganlib.config import Params
from ganlib.export import Generator
from pipelines import model_registry
from pipelines._stage import StageError
from pipelines.gate import CHAMPION, Decision, decide, decide_between
from pipelines.model_card import Metrics
from pipelines.model_registry import Version
from pipelines.tracking import Store

__all__ = ["PREVIOUS", "TERMS", "Move", "approve", "moves", "promote", "rollback", "settle"]

PREVIOUS = "previous_champion"
TERMS = "gate.terms"  # set last: the gate whose decision has been carried out
MOVED = "moved."  # and the time: a person made this version the champion
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
    it independent of the metrics."""
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
        if decision.decision == "promoted" and params.gate.approval == "human" and not holds:
            waits = f"{decision.reason}; it waits for `ganlib approve {version.uri}`"
            decision = dataclasses.replace(decision, decision="held", reason=waits)
        before = [one.number for one in _promoted(store, version.model) if TERMS in one.tags]
        # the claim: a process that moves the alias after this one finds it
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


class Move(NamedTuple):
    """A version that a person made the champion. `over` is the number of the one that was, if any."""

    time: str
    """UTC, as ISO 8601 writes it"""
    version: int
    over: int | None
    action: str
    """`promote`, `rollback` or `approve`"""
    by: str
    reason: str


def promote(store: Store, version: Version, reason: str, action: str = "promote") -> Move:
    """Make a version the champion, regardless of the gate; the old champion becomes the previous one.

    The record is written first: a kill in between leaves a record without a move, never a move without one. Raises
    StageError where it is the champion already, without a reason, or where the store has lost its files.
    """
    if not reason.strip():
        raise StageError("--reason: expected why, found nothing")
    champion = model_registry.version_by_alias(store, version.model, CHAMPION)
    if _same(champion, version):
        raise StageError(f"{version.uri} is the champion already")
    model_registry.check_whole(store, version)
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    move = Move(now, version.number, champion.number if champion else None, action, _user(), reason.strip())
    record = {name: value for name, value in move._asdict().items() if name not in ("time", "version")}
    model_registry.tag_version(store, version, {MOVED + now: json.dumps(record, ensure_ascii=False)})
    if champion is not None:
        model_registry.set_alias(store, champion, PREVIOUS)
    model_registry.set_alias(store, version, CHAMPION)
    return move


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid())


def rollback(store: Store, model: str, reason: str) -> Move:
    """Make the previous champion the champion again; the other is the previous one then, so a second rollback takes the
    first back. Raises StageError where there is no previous one."""
    previous = model_registry.version_by_alias(store, model, PREVIOUS)
    if previous is None:
        raise StageError(f"{model}: no version has the alias {PREVIOUS}, so there is nothing to go back to")
    return promote(store, previous, reason, "rollback")


def approve(store: Store, version: Version, reason: str) -> Move:
    """Make a version that the gate holds the champion. Raises StageError where it does not hold it, or where the
    champion is another than the one that the version was compared with."""
    found = version.tags.get("gate.decision", "not decided")
    if found != "held":
        other = "" if found == "promoted" else "; `ganlib models promote` makes it the champion all the same"
        raise StageError(f"{version.uri}: expected a version that is held for approval, found {found}{other}")
    decision = Decision.from_tags(version.tags)
    champion = model_registry.version_by_alias(store, version.model, CHAMPION)
    if (champion and champion.number) != decision.champion_version:
        raise StageError(
            f"{version.uri}: compared with version {decision.champion_version or 'none'}, and the champion is "
            f"{champion.number if champion else 'none'} now; `ganlib models compare` compares, `ganlib models promote` "
            "makes it the champion"
        )
    move = promote(store, version, reason, "approve")
    both_reasons = f"{decision.reason.partition('; it waits for')[0]}; approved by {move.by}: {move.reason}"
    decision = dataclasses.replace(decision, decision="promoted", reason=both_reasons)
    model_registry.tag_version(store, version, decision.tags())
    return move


def moves(store: Store, model: str) -> list[Move]:
    """The versions that people made the champion, the latest last."""
    found = []
    for version in model_registry.versions(store, model):
        for tag, value in version.tags.items():
            if tag.startswith(MOVED):
                found.append(Move(time=tag.removeprefix(MOVED), version=version.number, **json.loads(value)))
    return sorted(found)


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
