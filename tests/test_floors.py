# SPDX-License-Identifier: Apache-2.0
"""The rooms stand on floors, and imports go down only. Imports are parsed, nothing is run."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "echo_plugin"

FLOORS = (
    {
        "errors",
        "anatomy",
        "cine",
        "annotations",
        "geometry",
        "model_card",
        "network_config",
        "progress",
        "durable",
    },  # the words
    {"measure"},
    {"models"},
    {"io"},
    {"phantom", "export"},
    {"answer"},
    {"training"},
    {"evaluate", "evidence"},
    {"acquisition"},
    {"host"},
    {"papers"},
    {"cli"},
    {"__main__"},
)
"""From the ground up, words first. A room may import what is below it and itself, not the rooms of its own floor."""
APART = {("io", "models"), ("models", "io")}
FORBIDDEN_LIBRARIES = {
    "io": {"torch", "torchvision", "monai"},
    "phantom": {"torch", "torchvision", "monai"},
    "measure": {"torch", "torchvision"},
}
Import = tuple[str, str, bool]
"""Who imports what, without ``echo_plugin.``; whether it waits for a call, or is for a type checker alone."""


def _modules() -> dict[str, Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def _imports(tree: ast.AST, *, is_lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the dotted names that a file imports, ``from a import b`` as both a and a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, is_lazy
            yield from ((f"{node.module}.{alias.name}", is_lazy) for alias in node.names)
        else:
            for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            called = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(node, is_lazy=is_lazy or called or for_types)


@cache
def _own_imports() -> list[Import]:
    modules = _modules()
    return [
        (module, name.removeprefix("echo_plugin."), is_lazy)
        for module, path in modules.items()
        for name, is_lazy in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if name.startswith("echo_plugin.") and name.removeprefix("echo_plugin.") in modules
    ]


def _room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def _floor(module: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if _room(module) in rooms:
            return number
    raise AssertionError(f"echo_plugin.{module} is on no floor: give its room one in FLOORS")


def _climbs(imports: list[Import]) -> list[str]:
    """Return a sentence for each import that does not go down."""
    words = FLOORS[0]
    return [
        f"echo_plugin.{module} imports echo_plugin.{imported}: imports go down only, and the floor of"
        f" {_room(imported)} ({_floor(imported)}) is not below that of {_room(module)} ({_floor(module)})"
        for module, imported, _ in imports
        if _floor(imported) > _floor(module)
        or (_floor(imported) == _floor(module) and _room(module) != _room(imported) and _room(module) not in words)
        or (_room(module), _room(imported)) in APART
    ]


def _circles(imports: list[Import]) -> list[str]:
    """Return the modules that import themselves by way of others."""
    below: dict[str, set[str]] = {}
    for module, imported, _ in imports:
        below.setdefault(module, set()).add(imported)

    def reaches(start: str) -> set[str]:
        seen, waiting = set(), list(below.get(start, ()))
        while waiting:
            if (module := waiting.pop()) not in seen:
                seen.add(module)
                waiting += below.get(module, ())
        return seen

    return [module for module in below if module in reaches(module)]


def test_imports_go_down_only() -> None:
    assert not _climbs(_own_imports())


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert not _circles(_own_imports())


def test_a_climb_and_a_circle_would_be_found() -> None:
    assert _climbs([("io.dicom_cine", "answer.predict", False)])
    assert _climbs([("export.study_folder", "phantom.study", False)])
    assert _climbs([("io.sector", "models.vit", False)])
    assert not _climbs([("answer.predict", "io.dicom_cine", False), ("cine", "errors", False)])
    assert _circles([("cine", "geometry", False), ("geometry", "anatomy", False), ("anatomy", "cine", True)])


def test_the_papers_are_loaded_by_the_verbs_that_ask_for_them_alone() -> None:
    strays = [
        f"echo_plugin.{module} imports echo_plugin.{imported} though nobody asked for it: import it in the verb"
        for module, imported, is_lazy in _own_imports()
        if _room(imported) == "papers" and _room(module) != "papers" and not is_lazy
    ]

    assert not strays


def test_libraries_stay_in_their_rooms() -> None:
    strays = [
        f"echo_plugin.{module} imports {name}: {_room(module)} works without it"
        for module, path in _modules().items()
        for name, _ in _imports(ast.parse(path.read_text(encoding="utf-8")))
        if name.split(".")[0] in FORBIDDEN_LIBRARIES.get(_room(module), set())
        or (name.split(".")[0] == "monailabel" and _room(module) != "host")
    ]

    assert not strays


def test_every_file_says_its_licence() -> None:
    files = [p for folder in ("echo_plugin", "apps", "tests") for p in (ROOT / folder).rglob("*.py")]

    silent = [
        str(p.relative_to(ROOT))
        for p in files
        if p.stat().st_size and "SPDX-License-Identifier: Apache-2.0" not in p.read_text(encoding="utf-8")[:200]
    ]

    assert not silent
