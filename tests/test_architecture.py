"""Who may import whom, read from the sources without importing them."""

import ast
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
# Room (first part of the path below scripts/) -> rooms it may import, beside itself.
ARROWS = {
    # small and plain
    "errors": set(),
    "text": {"errors"},
    "files": {"errors", "text"},
    "options": {"errors", "text"},
    "contrast_agents": set(),
    "contrasts": {"errors", "contrast_agents"},
    "devices": {"errors"},
    "floating_type": {"errors", "files", "inferers"},  # it calls the network as the inferers do
    "processes": set(),
    "workflow": {"errors", "options", "devices"},  # how a workflow starts
    "weights": {"errors", "files"},
    "calibration": set(),
    "packaging": {"errors", "files", "workflow"},
    # the method
    "schedulers": set(),
    "codec": set(),
    "retrieval": {"errors", "files"},  # a base is a file of its own
    "slabs": set(),
    "losses": set(),
    "tissue_loss": {"codec"},
    # the names of keys; the key of a volume that is given; keys that are not beside the weights
    "conditioning": {"contrasts", "errors", "volumes"},
    "networks": {"schedulers", "slabs", "losses"},
    "slab_ranks": {"errors", "devices"},
    # devices: how many slabs a call takes; slab_ranks: who samples which slices
    "inferers": {"schedulers", "codec", "slabs", "devices", "slab_ranks"},
    "serving": {"errors", "inferers", "schedulers", "conditioning"},
    # networks: which of them can be exported
    "exports": {"errors", "files", "options", "weights", "workflow", "networks"},
    # schedulers: the schedule that they were trained with
    "import_weights": {"errors", "files", "options", "weights", "workflow", "schedulers"},
    # volumes
    "dicom": {"errors", "files", "contrast_agents"},
    "volumes": {"errors", "files", "text", "devices", "dicom"},  # devices: what memory is free
    # retrieval, networks, weights: a knowledge base, and the encoder that it was built with
    # contrasts: what the keys of several contrasts are called
    "transforms": {"errors", "files", "contrasts", "slabs", "volumes", "dicom", "retrieval", "networks", "weights"},
    "simulation": {"errors", "volumes"},
    "registration": {"errors", "contrasts", "volumes"},
    "data": {
        *("errors", "files", "text", "contrasts", "processes", "slabs", "conditioning"),
        *("volumes", "transforms", "dicom", "retrieval"),
        "simulation",  # of which contrast the tissue fractions are taken
    },
    "knowledge_base": {*("errors", "files", "options", "workflow", "weights", "networks", "retrieval", "data")},
    "watch": set(),
    # watch: measures of the brain's shape beside those of its values
    "outputs": {"errors", "files", "contrasts", "conditioning", "volumes", "transforms", "dicom", "watch"},
    # work
    "prepare": {
        *("errors", "files", "options", "processes", "contrasts", "workflow", "text"),
        *("volumes", "transforms", "registration", "data", "outputs", "dicom"),
    },
    "engines": {"errors", "files", "inferers", "schedulers", "conditioning"},  # it saves the style keys it trained on
    "federated": {"errors", "files", "options", "weights", "workflow", "conditioning"},  # the style keys of a site
    "cohort": {"errors", "files", "contrasts", "volumes", "outputs"},
    # the main job as a user types it, one case at a time; what a prepared set is called, for its list in a store
    "cluster": {"errors", "files", "options", "workflow", "cohort", "outputs", "data", "volumes"},
    "dicom_node": {
        "errors",
        "files",
        "contrasts",
        "options",
        "workflow",
        "dicom",
    },  # it runs the main job as a user types it
    # tables and pages
    "evaluation": {
        "networks",  # the tissue segmenter, with its weights
        "inferers",  # what a codec gives back
        "slabs",
        "weights",
        "schedulers",
        "calibration",
        "text",
        "options",
        "processes",
        "errors",
        "files",
        "contrasts",
        "volumes",
        "transforms",
        "data",
        "outputs",
        "simulation",
        "workflow",
    },
    "report": {
        "text",
        "errors",
        "files",
        "contrasts",
        "evaluation",
        "conditioning",
        "volumes",
        "transforms",
        "outputs",
        "dicom",
        "workflow",
    },
    # it runs the main job and its parts as configs name them; tables and lists of names are read as in evaluation
    "benchmark": {
        *("errors", "files", "options", "weights", "devices", "inferers", "workflow"),
        *("data", "evaluation", "exports"),
    },
}
# Rooms of plain mathematics: nothing but these.
PLAIN_ROOMS = ("schedulers", "codec", "retrieval", "slabs", "losses", "tissue_loss", "conditioning", "networks")
PLAIN_PACKAGES = {"torch", "numpy", "monai"}
STANDARD_LIBRARY = {
    "__future__",
    "abc",
    "collections",
    "dataclasses",
    "functools",
    "hashlib",
    "itertools",
    "json",
    "logging",
    "math",
    "os",
    "pathlib",
    "secrets",
    "typing",
    "warnings",
    "zipfile",
    "zlib",
}


def room_of(path: Path) -> str:
    return path.relative_to(SCRIPTS).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, relative imports resolved."""
    package = ["scripts", *path.relative_to(SCRIPTS).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from scripts import slabs` names a room by its alias.
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "scripts" else {module}
    return names


FILES = sorted(SCRIPTS.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SCRIPTS)))
def test_rooms_import_only_what_they_may(path):
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("scripts.")}
    assert "__main__" not in rooms
    if room in ARROWS:
        assert rooms <= ARROWS[room] | {room}
    if room in PLAIN_ROOMS:
        packages = {name.split(".")[0] for name in imports_of(path)} - {"scripts"}
        assert packages <= PLAIN_PACKAGES | STANDARD_LIBRARY


def test_the_rooms_are_there():
    """The check above sees every kind of import, and the rooms it speaks of exist."""
    assert {"schedulers", "slabs", "conditioning", "networks", "inferers"} <= {room_of(path) for path in FILES}
    assert "scripts.slabs" in imports_of(SCRIPTS / "inferers" / "ista.py")
    assert "scripts.errors" in imports_of(SCRIPTS / "weights.py")
    assert "scripts.schedulers.brownian_bridge" in imports_of(SCRIPTS / "schedulers" / "__init__.py")
