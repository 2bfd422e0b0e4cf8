"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bundle_root() -> Path:
    """The repository's root, which is the bundle's."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data(bundle_root: Path) -> Path:
    """Folder of real volumes beside the checkout; tests that use it are skipped where it is absent."""
    folder = bundle_root.parent / "shared" / "data"
    if not (folder / "subjects.json").exists():
        pytest.skip("the volumes of ../shared/data are not here")
    return folder
