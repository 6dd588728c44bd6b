# SPDX-License-Identifier: Apache-2.0
"""The house has floors: imports go down only (DESIGN: layout and floors). Imports are parsed, nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "echo_plugin"

FLOORS = {
    0: {"errors", "anatomy", "cine", "annotations", "geometry", "model_card", "progress"},
    1: {"io", "models", "phantom"},
    2: {
        "preprocess", "predict", "prediction", "batch", "archive", "overview", "runtime", "study_labels",
        "boxes", "defects", "views", "acquisition", "training", "export",
        "metrics", "cohort_facts", "report", "held_out", "evaluation_pictures", "transfer",
    },
    3: {"host", "viewers"},
    4: {"cli", "cli_import", "cli_predict", "cli_export", "cli_reproduce_views", "cli_reproduce_defects",
        "cli_labels", "cli_mae", "cli_options", "cli_review", "cli_train", "cli_evidence", "progress_bar", "__main__"},
}  # fmt: skip
SHARED_BY_TRAINERS = {
    "splits", "datasets", "prepared_frames", "phantom_folder", "augment", "appearance", "loop", "options", "provenance",
    "defect_crops", "defect_calibration", "defect_recipes", "defect_figures", "defect_head",
    "clips", "view_stages", "recipe", "state", "processes", "curves", "pretrained", "anchors", "detector_recipes",
    "start_weights", "view_recipes", "mae_frames", "mae_pictures", "mae_options", "linear_probe", "one_at_a_time",
    "detector_figures", "kept_frames", "mae_figures", "kept_outcome", "start_classes", "start_network", "trained_card",
    "nameless_files", "view_cines",
}  # fmt: skip
FORBIDDEN_LIBRARIES = {"io": {"torch", "torchvision", "monai", "monailabel"}, "phantom": {"torch", "monailabel"}}


def _modules() -> list[tuple[str, Path]]:
    paths = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
    return [(".".join(p.relative_to(PACKAGE).with_suffix("").parts), p) for p in paths]


def _imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, `from a import b` as both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _floor(module: str) -> int:
    room = module.split(".")[0]
    floors = [floor for floor, rooms in FLOORS.items() if room in rooms]
    assert floors, f"echo_plugin.{module} is on no floor: give it one in tests/test_floors.py"
    return floors[0]


def _own(names: set[str]) -> set[str]:
    known = {module for module, _ in _modules()}
    return {n.removeprefix("echo_plugin.") for n in names if n.removeprefix("echo_plugin.") in known}


@pytest.mark.parametrize(("module", "path"), _modules(), ids=[m for m, _ in _modules()])
def test_imports_go_down_only(module: str, path: Path) -> None:
    for imported in _own(_imports(path)):
        assert _floor(imported) <= _floor(module), (
            f"echo_plugin.{module} imports echo_plugin.{imported}: imports go down only,"
            f" and floor {_floor(imported)} is above floor {_floor(module)}"
        )


@pytest.mark.parametrize(("module", "path"), _modules(), ids=[m for m, _ in _modules()])
def test_models_and_io_do_not_know_each_other(module: str, path: Path) -> None:
    room = module.split(".")[0]
    for imported in _own(_imports(path)):
        pair = {room, imported.split(".")[0]}
        assert pair != {"io", "models"}, f"echo_plugin.{module} imports echo_plugin.{imported}: io and models are apart"


@pytest.mark.parametrize(("module", "path"), _modules(), ids=[m for m, _ in _modules()])
def test_libraries_stay_in_their_rooms(module: str, path: Path) -> None:
    room = module.split(".")[0]
    libraries = {name.split(".")[0] for name in _imports(path)}

    strays = libraries & FORBIDDEN_LIBRARIES.get(room, set())
    assert not strays, f"echo_plugin.{module} imports {sorted(strays)}: {room} works without them"
    if room != "host":
        assert "monailabel" not in libraries, f"echo_plugin.{module} imports monailabel: only host may"


@pytest.mark.parametrize(("module", "path"), _modules(), ids=[m for m, _ in _modules()])
def test_siblings_in_tasks_and_training_do_not_import_each_other(module: str, path: Path) -> None:
    for folder, shared in (("host.tasks.", set()), ("training.", SHARED_BY_TRAINERS)):
        if not module.startswith(folder):
            continue
        siblings = {i.removeprefix(folder) for i in _own(_imports(path)) if i.startswith(folder)}
        strays = siblings - shared
        if module.removeprefix(folder) in shared:
            strays &= {"detector", "defects", "views", "mae"}
        assert not strays, f"echo_plugin.{module} imports its siblings {sorted(strays)}; share through {sorted(shared)}"


def test_a_climbing_import_would_be_found() -> None:
    """The rule itself works: floor 1 importing floor 2 is seen as a climb."""
    assert _floor("io.dicom_cine") < _floor("predict") < _floor("host.app")


def test_every_file_says_its_licence() -> None:
    files = [p for folder in ("echo_plugin", "apps", "tests") for p in (ROOT / folder).rglob("*.py")]

    silent = [
        str(p.relative_to(ROOT))
        for p in files
        if p.stat().st_size and "SPDX-License-Identifier: Apache-2.0" not in p.read_text(encoding="utf-8")[:200]
    ]

    assert not silent
