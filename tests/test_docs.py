# SPDX-License-Identifier: Apache-2.0
"""The README and the manual: short, with links that lead somewhere and commands that exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import typer

from echo_plugin.cli.main import app
from tests.test_floors import FLOORS

ROOT = Path(__file__).resolve().parents[1]
MANUAL = ROOT / "apps" / "echo"
PICTURES = ROOT / ".github" / "pictures"
PAGES = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / "sample_studies" / "README.md",
    MANUAL / "README.md",
    *sorted((MANUAL / "docs").glob("*.md")),
]
MOST_LINES, LONGEST_PARAGRAPH, LONGEST_LINE = 150, 5, 120
LINK = re.compile(r"\]\(([^)\s]+)\)")
PROGRAMS = {"monailabel-echo": [], "apps/echo/start.py": ["serve"]}
"""What begins a command line, and the words of ``monailabel-echo`` that it stands for."""


def _without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs and the single items of lists; tables, headings and fenced lines are none."""
    for block in re.split(r"\n\s*\n", _without_fences(text)):
        lines = [line for line in block.splitlines() if line and not line.startswith(("|", "#"))]
        yield from re.split(r"\n(?=(?:[*-]|\d+\.) )", "\n".join(lines))


def test_the_readme_is_a_page_and_paragraphs_are_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        long = [p for p in _paragraphs(text) if len(p.splitlines()) > LONGEST_PARAGRAPH]
        wide = [line for line in text.splitlines() if len(line) > LONGEST_LINE and not line.startswith("|")]
        assert not long, f"{page.name}: {long[0]}"
        assert not wide, f"{page.name}: {wide[0]}"


def test_every_link_leads_to_a_file_and_every_picture_is_shown() -> None:
    shown = set()
    for page in PAGES:
        for target in LINK.findall(_without_fences(page.read_text(encoding="utf-8"))):
            if "://" in target or target.startswith("#"):
                continue
            file = (page.parent / target.partition("#")[0]).resolve()
            shown.add(file)
            assert file.exists(), f"{page.name} links to {target}, which is not there"

    assert {path for path in PICTURES.iterdir() if path not in shown} == set()


def test_the_manual_has_a_page_for_each_line_of_its_index() -> None:
    index = (MANUAL / "README.md").read_text(encoding="utf-8")

    assert [page.name for page in (MANUAL / "docs").glob("*.md") if f"(docs/{page.name})" not in index] == []


def test_the_drawing_of_the_rooms_has_every_room_from_the_top_down() -> None:
    drawing = (MANUAL / "docs" / "architecture.md").read_text(encoding="utf-8")
    words, *floors = [sorted(floor) for floor in FLOORS if floor != {"__main__"}]
    places = [max(drawing.index(f"<b>{room}</b>") for room in floor) for floor in floors]

    assert places == sorted(places, reverse=True)
    assert [word for word in words if word not in drawing.partition("<b>the words</b>")[2].partition("\n")[0]] == []


def _commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after ``monailabel-echo`` of every command line of a page."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = [
        line for block in re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for line in block.split("\n")
    ]
    inline = re.findall(r"`([^`\n]+)`", _without_fences(text))
    for line in [*fenced, *inline]:
        for program, words in PROGRAMS.items():
            before, found, after = line.partition(program + " ")
            if found and before in ("", "python3.11 ", ".venv/bin/"):
                yield [*words, *shlex.split(after, comments=True)]


def _fault(words: list[str]) -> str:
    """Return what of a command line does not exist: a verb, sub-commands by their names, or an option; else nothing."""
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "--debug"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]
    return f"{command.name} has no {unknown[0]}" if unknown else ""


def test_every_command_line_of_the_documentation_exists() -> None:
    found = [(page.name, words) for page in PAGES for words in _commands(page)]

    assert len(found) > 40
    assert [(page, words, fault) for page, words in found if (fault := _fault(words))] == []


def test_a_verb_and_an_option_that_do_not_exist_are_found() -> None:
    assert _fault(["predikt"]) == "no verb predikt"
    assert _fault(["reproduce", "x"]) == "no verb x"
    assert _fault(["info", "--colour"]) == "info has no --colour"
    assert not _fault(["info", "--json", "-"])


def test_options_named_in_prose_exist_somewhere() -> None:
    commands, known = [typer.main.get_command(app)], {"--help", "--debug"}
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        known |= {name for parameter in command.params for name in parameter.opts}
    for page in [ROOT / "README.md", MANUAL / "README.md", *sorted((MANUAL / "docs").glob("*.md"))]:
        for option in re.findall(r"`(--[a-z-]+)", _without_fences(page.read_text(encoding="utf-8"))):
            assert option in known, f"{page.name} speaks of {option}"


def test_every_extra_and_every_marker_that_is_named_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    markers = {line.partition(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]}

    assert set(re.findall(r"extra `([a-z]+)`", text)) <= set(project["project"]["optional-dependencies"])
    contributing = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_]+)` \|", contributing, re.MULTILINE)) == markers
