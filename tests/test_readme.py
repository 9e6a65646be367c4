"""The README does what it says: its commands run as written, and what it names exists."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from params_files import copy_params
from typer.main import get_command

from ganlib.config import load_params
from pipelines.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """The one fenced block that the comment `<!-- name -->` stands before."""
    (found,) = re.findall(rf"^<!-- {name} -->\n```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return found.strip()


BLOCKS = re.findall(r"^```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
LINES = [line for text in BLOCKS for line in text.splitlines()]
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE))


def commands(program: str, texts: list[str]) -> list[list[str]]:
    """Every call of the program in these texts, as words."""
    words = [shlex.split(part, comments=True) for text in texts for part in text.split("&&")]
    return [found for found in words if found[:1] == [program]]


# -- what it says to run: `test_pipeline.py` runs the first command, and goes on from there ------------------------


def python_in(folder: Path) -> str:
    """The README's Python, for the project in `folder`."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert "/path/to/ganlib/" in code
    return code.replace("/path/to/ganlib/", f"{folder}/")


def test_the_python_finds_a_model_from_another_folder(tmp_path):
    """A generator that has learned nothing, where nothing can be imported that the project needs and the
    model's requirements do not name or need themselves."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    run = {"check": True, "capture_output": True, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    subprocess.run([sys.executable, "-c", REGISTER], cwd=project, **run)
    seen = "print(images.shape, images.dtype, ganlib.__file__)"
    code = f"{WITHOUT_THE_PROJECT}\n{python_in(project)}\nimport ganlib\n{seen}"
    run["env"] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, **run)
    shown, file = done.stdout.splitlines()[-1].rsplit(maxsplit=1)
    assert shown == "(16, 28, 28, 1) uint8"
    assert Path(file).is_relative_to(project / "mlartifacts")
    assert list(elsewhere.iterdir()) == []


WITHOUT_THE_PROJECT = """
import sys
for name in ("pipelines", "ray", "dvc", "typer", "optuna", "mlxtend", "efficientnet_lite_pytorch", "torchmetrics"):
    sys.modules[name] = None  # an import of it fails
"""


REGISTER = """
from pathlib import Path
from ganlib import registry
from ganlib.config import TrackingConfig
from ganlib.data._spec import Spec
from ganlib.export import save_generator
from pipelines import model_registry, tracking

family, sample = registry.load("models", "mlp"), registry.load("data", "image").Config(resolution=(28, 28), channels=1)
spec = Spec(sample, "image", tuple("0123456789"), {}, "hash")
network = family.Config(width=8)
save_generator(Path("generator"), family.build(network, spec).generator, network=network, spec=spec)
store = tracking.open_store(TrackingConfig())
with tracking.run(store, "key", "name") as run:
    version = model_registry.register_generator(run, Path("generator"), "ganlib-mnist", "key", {})
model_registry.set_alias(store, version, "champion")
"""


def test_ci_runs_the_second_command(tmp_path):
    """`.ci/run` is run for real, but for the shell that it hands the command to: that one prints it."""
    (tmp_path / "stub").mkdir()
    stub = tmp_path / "stub/bash"
    stub.write_text('#!/bin/sh\nfor last; do :; done\nprintf %s "$last"\n')
    stub.chmod(0o755)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "README.md", tmp_path)
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, tmp_path / ".ci/run"],
        env={**os.environ, "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == block("test")
    assert block("test").startswith(block("run").split(" && ")[0])
    assert len(block("test").splitlines()) == 1  # "two commands"
    assert len(block("run").splitlines()) == 1


# -- what it names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: text.split("\n")[0][:40])
def test_every_block_parses(text):
    subprocess.run(["bash", "-n", "-c", text], check=True)


# DVC's overrides are Hydra's, read in a process of their own: Hydra keeps global state
OVERRIDES = """
import sys
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
for sweep in get_hydra_sweeps(to_path_overrides(sys.argv[1:])):
    for file, overrides in sweep.items():
        apply_overrides(file, overrides)
"""


@pytest.mark.parametrize(
    "changes",
    [
        [word for flag, word in pairwise(words) if flag == "-S"]
        for words in commands("dvc", LINES + SPANS)
        if "-S" in words
    ],
    ids=" ".join,
)
def test_every_flag_is_a_key_and_a_value_that_is_allowed(changes, tmp_path):
    copy_params(tmp_path)
    subprocess.run([sys.executable, "-c", OVERRIDES, *changes], cwd=tmp_path, check=True)
    changed = load_params(tmp_path / "params.yaml")
    assert changed != load_params(ROOT / "params.yaml")


def parse_ganlib(words: list[str], *, whole: bool = True) -> None:
    """Fails for an unknown command or option; if the command is `whole`, for a missing argument, too."""
    command, rest = get_command(app), words[1:]
    context = command.make_context(words[0], list(rest), resilient_parsing=True)
    while rest and hasattr(command, "commands"):
        _, command, rest = command.resolve_command(context, rest)
    if rest or (whole and not hasattr(command, "commands")):
        command.make_context(words[0], rest)


@pytest.mark.parametrize("words", commands("ganlib", LINES), ids=" ".join)
def test_ganlib_has_every_option(words):
    parse_ganlib(words)


def test_ganlib_has_every_command():
    for words in commands("ganlib", SPANS):
        parse_ganlib(words, whole=False)


@pytest.mark.parametrize("words", commands("dvc", LINES + SPANS), ids=" ".join)
def test_dvc_has_every_command(words):
    from dvc.cli.parser import get_main_parser

    get_main_parser().parse_args(words[1:])


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 3
    assert [link for link in links if "://" not in link and not (ROOT / link).is_file()] == []


def test_sections_and_keys_in_the_text_exist():
    """Dotted words in code, such as `gate.margin`, that begin with a section of params.yaml."""
    raw = load_params(ROOT / "params.yaml").model_dump(mode="json")
    dotted = [span for span in SPANS if re.fullmatch(r"\w+(\.\w+)+", span) and span.split(".")[0] in raw]
    dotted += [f"models.dcgan.{span}" for span in SPANS if re.fullmatch(r"penalties(\.\w+)+", span)]
    assert len(dotted) > 3
    for key in dotted:
        here = raw
        for name in key.split("."):
            assert name in here, f"README names {key}; params.yaml has no such key"
            here = here[name]
