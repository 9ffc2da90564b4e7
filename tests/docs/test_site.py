"""The documentation as a site, and what it names."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import vqfast
from tests.docs.pages import PAGES, ROOT
from tests.test_floors import FLOORS
from vqfast import functional


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_api_pages_have_every_public_name(site: Path) -> None:
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.split()[0].rpartition(".")[2] for line in inventory.splitlines()}
    assert {"accelerate", "functional"} ^ {*vqfast.__all__, *functional.__all__} <= documented


def test_files_that_are_named_exist() -> None:
    """Links between files, and paths that begin with a folder of the project."""
    for page in PAGES:
        text = page.read_text()
        links = {page.parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text)}
        paths = re.findall(r"(?<![\w/.-])((?:vqfast|csrc|docs|tests|benchmarks|examples)/[\w./-]*\w)", text)
        missing = {str(path) for path in links | {ROOT / path for path in paths} if not path.exists()}
        assert not missing, page


def test_the_drawn_house_is_the_one_that_stands() -> None:
    """The floors on the page are those that the imports are held to."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = re.findall(r"^ +(\d+)   ([\w.]+)/? ", page, re.MULTILINE)
    wanted = [(str(len(FLOORS) - depth), room) for depth, rooms in enumerate(FLOORS) for room in rooms]
    assert [(floor, room.removesuffix(".py")) for floor, room in drawn] == wanted
