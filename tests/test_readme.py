# SPDX-License-Identifier: Apache-2.0
"""Every figure of the README stands on the page of results that is linked beside it, which a program wrote."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "apps" / "echo" / "docs" / "results"
FIGURE = re.compile(r"\d+\.\d+")
NO_FIGURE = re.compile(
    r"^```.*?^```$|`[^`\n]*`|\]\([^)]*\)|Python 3\.\d+(?: or 3\.\d+)?|arXiv:\S+|Apache-2\.0|CC BY-NC 4\.0",
    re.DOTALL | re.MULTILINE,
)
"""Code, addresses, versions, identifiers and licences."""
MADE = ("| command |", "| date |", "| machine |")


def lines_with_figures(text: str) -> dict[str, list[str]]:
    """Return the figures by the line that they stand on."""
    links = {
        line: NO_FIGURE.sub("", line) for line in re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M).splitlines()
    }
    return {line: figures for line, bare in links.items() if (figures := FIGURE.findall(bare))}


def test_every_figure_of_the_readme_is_on_the_page_that_it_links_to() -> None:
    found = lines_with_figures((ROOT / "README.md").read_text(encoding="utf-8"))

    assert found
    for line, figures in found.items():
        pages = [ROOT / target for target in re.findall(r"\]\((apps/echo/(?:docs/results|model)/[a-z_-]+\.md)\)", line)]
        assert pages, f"no page that a program wrote is linked beside {figures}"
        there = {figure for page in pages for figure in FIGURE.findall(page.read_text(encoding="utf-8"))}
        assert set(figures) <= there, f"{set(figures) - there} is on none of {[page.name for page in pages]}"


def test_figures_are_told_from_versions_and_addresses() -> None:
    text = "Python 3.11, `pip 1.5`, arXiv:1801.07698\nAP50 0.915, 0.902 to 0.928 ([page](a/1.0/x.md))\n"

    assert list(lines_with_figures(text).values()) == [["0.915", "0.902", "0.928"]]


def test_the_manual_has_no_figures_of_its_own() -> None:
    manual = ROOT / "apps" / "echo"
    for page in [manual / "README.md", *(manual / "docs").glob("*.md")]:
        assert not lines_with_figures(page.read_text(encoding="utf-8")), page.name


def test_every_page_of_results_says_command_date_and_machine() -> None:
    for page in RESULTS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert [row for row in MADE if row not in text] == [], page.name
