"""The recipes of docs/extending.md, typed exactly as they stand there, in a copy of the bundle."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


class Recipe:
    """A section of the page, followed in a copy of the bundle.

    The page says "Append to `FILE`:", "Write `FILE`:" or "Type:" before each fenced block; nothing else is followed.
    """

    def __init__(self, section: str, bundle: Path) -> None:
        self.bundle = bundle
        self.output: list[str] = []
        pattern = r"^(?:\d+\. |- )?(Append to|Write|Type)(?: `([^`]+)`)?[^\n]*:\n\n *```\w*\n(.*?)\n *```$"
        self.steps = re.findall(pattern, section, re.MULTILINE | re.DOTALL)

    def follow(self, environment: dict[str, str]) -> None:
        """Do each step; what the typed commands print is kept in `output`."""
        for what, file, block in self.steps:
            block = re.sub(r"^   ", "", block, flags=re.MULTILINE) if block.startswith("   ") else block
            if what == "Type":
                self._type(block, environment)
            else:
                self._write(self.bundle / file, block, "a" if what == "Append to" else "w")

    @staticmethod
    def _write(path: Path, block: str, mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(f"\n\n{block}\n" if mode == "a" else f"{block}\n")

    def _type(self, command: str, environment: dict[str, str]) -> None:
        ended = subprocess.run(
            ["bash", "-e", "-c", command], cwd=self.bundle, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
        self.output.append(ended.stdout + ended.stderr)


@pytest.fixture
def recipe(bundle_root: Path, tmp_path: Path):
    """Follow the recipe under a heading; gives the copy of the bundle and what was printed."""
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_root / "scripts", bundle / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(bundle_root / "configs", bundle / "configs")
    for folder in ("docs", "models", "tests"):
        (bundle / folder).symlink_to(bundle_root / folder)
    (bundle / "bin").mkdir()
    (bundle / "bin" / "python").symlink_to(sys.executable)
    page = (bundle_root / "docs" / "extending.md").read_text(encoding="utf-8")

    def follow(heading: str) -> Recipe:
        section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
        made = Recipe(section, bundle)
        assert made.steps
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        made.follow({**os.environ, "PATH": path, "PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"})
        return made

    follow.bundle = bundle
    return follow
