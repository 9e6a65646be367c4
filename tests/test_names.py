"""No file of `ganlib` or `pipelines` names a kind of data, source, family, feature space or metric but its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ganlib import registry

ROOT = Path(__file__).parents[1]

REGISTERED = {
    registry.module_name(kind, name, folder): name
    for kind in registry.KINDS
    for folder in (None, *registry.folders(kind))
    for name in registry.names(kind, folder)
}
# how an entry says what it suits; what it says there it may name
DECLARATIONS = {"MODALITY", "KINDS", "PAYLOADS", "LOOKS", "NEEDS", "ALIASES"}
# names that are words for something else too, and so count in imports alone
WORDS = {"columns", "csv", "cut", "image", "l1", "lines", "parquet", "quality", "rows", "shapes", "table"}
ALLOWED = {
    "ganlib/config.py": {
        "coverage": "default thresholds of the gate, and what they were called before",
        "memorisation_ratio": "the same",
        "label_accuracy": "the same",
        "inception": "what a key was called before",
    },
    "ganlib/health.py": {"fd": "quality while training, which its alarms read", "class_coverage": "the same"},
    "ganlib/reference.py": {
        "fd": "quality while training: the one figure that searches and checkpoints go by",
        "class_coverage": "the same, of a classifier",
        "label_accuracy": "the same",
    },
    "ganlib/data/pair.py": {"image": "a pair is two images"},
    "ganlib/spaces/video/_frames.py": {"efficientnet_lite0": "which sees each frame as an image"},
    "ganlib/sources/moving_images.py": {"idx": "whose files it reads"},
    "ganlib/data/video.py": {"image": "a frame is an image"},
    "ganlib/data/unpaired.py": {"image": "an example is two images"},
    "ganlib/models/_translation.py": {
        "cycle_psnr": "what families of translation answer, by the name that a metric needs",
        "edge_correlation": "the same",
    },
    "ganlib/models/stargan.py": {
        "attribute_error": "what it answers, by the name that a metric needs",
        "judge_error": "the same",
    },
    "ganlib/models/restore.py": {"efficientnet_lite0": "whose feature maps it compares"},
    "ganlib/data/sequence.py": {"characters": "the default tokeniser"},
    "ganlib/models/relgan.py": {"nll": "what it answers, by the name that a metric needs"},
    "ganlib/sources/_images.py": {"image": "what sources of images share"},
    "pipelines/gate.py": {"kid": "the default metric to decide by"},
    "pipelines/train.py": {"label_accuracy": "quality while training, printed"},
    "pipelines/evaluate.py": {"label_accuracy": "a column of classes.csv"},
    "pipelines/model_card.py": {
        "coverage": "what a card says in words, where it was measured",
        "label_accuracy": "the same",
        "c2st": "the same",
        "psnr": "the same",
        "memorisation_ratio": "the audit that a card states",
        "copied": "the same",
    },
}


def named(file: Path) -> set[str]:
    """The entries that a file names, but for what it declares to suit."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    declared = set[str]()
    for statement in tree.body:
        match statement:
            case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)) if name in DECLARATIONS:
                declared |= {node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)}
    return {*words(tree)} & {*REGISTERED.values()} - declared


def words(tree: ast.Module) -> Iterator[str]:
    """What a file imports, and the words of its strings that look like names, paths or keys; no prose, no docstring."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(str(text)) if id(node) not in prose and re.fullmatch(r"[\w./]+", text):
                yield from {*re.split(r"[./]", text)} - WORDS
            case ast.ImportFrom(module=str(module), names=names):
                yield from (REGISTERED.get(f"{module}.{alias.name}", "") for alias in names)
                yield REGISTERED.get(module, "")
            case ast.Import(names):
                yield from (REGISTERED.get(alias.name, "") for alias in names)


def test_only_its_own_file_names_an_entry():
    found = dict[str, set[str]]()
    for file in (*(ROOT / "ganlib").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")):
        path = file.relative_to(ROOT)
        names = named(file) - {REGISTERED.get(".".join(path.with_suffix("").parts))}
        if names:
            found[path.as_posix()] = names
    assert found == {file: {*names} for file, names in ALLOWED.items()}
