"""Documentation that can be checked: the reference is made from the code, and links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from test_readme import commands, parse_ganlib

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "infra").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """Headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link}: there is no {target}"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


def test_files_that_code_and_comments_name_exist():
    named = re.compile(r"\bdocs/[\w/.-]+\.(?:md|png)")
    sources = [
        *ROOT.glob("*.yaml"),
        *(p for d in ("ganlib", "pipelines", "params", "infra", "tests") for p in (ROOT / d).rglob("*")),
    ]
    for path in (p for p in sources if p.suffix in (".py", ".yaml", ".md", ".sh") and p != Path(__file__)):
        for name in named.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index or f"({page.name}#" in index, page.name


def test_the_reference_is_current():
    made = runpy.run_path(str(ROOT / "docs/make_reference.py"))["page"]()
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == made, "run python docs/make_reference.py"
    assert "| `train.kimg` | number or `auto` |" in made
    assert "| `fd` | any | lower | 0, ∞ | `features` | Fréchet distance" in made


def test_the_reference_explains_every_key():
    keys, _, _ = (ROOT / "docs/reference.md").read_text(encoding="utf-8").partition("### augment")
    silent = [line for line in keys.splitlines() if line.startswith("| `") and line.endswith(" |  |")]
    assert [line for line in silent if " | a section | " not in line] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_shell_blocks_parse(page):
    """Each command's options exist. test_readme.py also runs those of the README."""
    from dvc.cli.parser import get_main_parser

    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for words in commands("ganlib", lines):
        parse_ganlib(words)
    for words in commands("dvc", lines):
        get_main_parser().parse_args(words[1:])
