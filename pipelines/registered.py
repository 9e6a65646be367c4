"""`ganlib register`: have the store hold the version that `outputs/register` names.

DVC knows what a stage reads and writes, not what it does to a store. In a new clone after `dvc pull`, with another
store or after one was lost, it finds the stage `register` up to date.
"""

from __future__ import annotations

import json
import subprocess
import sys

from ganlib.config import Params
from pipelines import addresses, model_registry, tracking
from pipelines._stage import REGISTERED, StageError
from pipelines.promotion import TERMS

__all__ = ["ensure_registered"]

REMEDY = "`dvc pull` brings what was made elsewhere, `dvc repro` makes it and registers"


def ensure_registered(params: Params) -> int:
    """Register the outputs in this folder in the store of `params`, unless it has them; returns an exit status.

    It runs DVC's stage `register`, which goes on where a killed one stopped. Raises StageError if the outputs are not
    those that `dvc.lock` names: then lineage would name what did not make them.
    """
    named = model_registry.recorded_version()
    if named is None:
        raise StageError(f"{REGISTERED}/decision.json: not here; {REMEDY}")
    stale = _stale_stages()
    if "code" in stale:  # which may only have seen a file that nothing uses
        _dvc("repro", "code", capture_output=True)
        stale = _stale_stages()
    if stale:
        raise StageError(f"dvc.lock: not up to date: {', '.join(stale)}; {REMEDY}")
    store = tracking.open_store(params.tracking)
    version = model_registry.find_version(store, *named)
    if version and TERMS in version.tags:
        model_registry.check_whole(store, version)
        print(f"{version.model} version {version.number} in {addresses.shown(store.uri)}: registered before")
        return 0
    return _dvc("repro", "--force", "--single-item", "register").returncode


def _stale_stages() -> list[str]:
    """The stages up to `register` that `dvc repro` would run, or whose outputs are not here."""
    asked = _dvc("status", "--json", "--with-deps", "register", capture_output=True)
    try:
        return list(json.loads(asked.stdout))
    except ValueError:
        raise StageError(f"dvc status: {(asked.stderr.strip().splitlines() or ['no answer'])[0]}") from None


def _dvc(*words: str, capture_output: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=capture_output, text=True)
