"""Virtual environments with other versions, what passes in them, and the tables of ``docs/versions.md``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "versions.md"


def create(home: Path) -> Path:
    """The interpreter of an environment, made unless it is there. What it lacks is this interpreter's."""
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=False, symlinks=True)
        behind = [path for path in sys.path if path.endswith("-packages")]
        (packages,) = home.glob("lib/*/site-packages")
        (packages / "behind.pth").write_text("\n".join(behind), encoding="utf-8")
    return python


def install(python: Path, package: str, alone: bool = True) -> None:
    """Installs a package, if possible of a wheel beside the environment; ``alone``: nothing that it needs."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    options = ["--no-deps", "--no-compile", "--find-links", str(python.parents[2])] if alone else []
    subprocess.run([*pip, *options, package], check=True)


def versions(python: Path, *packages: str) -> list[str]:
    """Those that an environment imports."""
    code = f"import {', '.join(packages)}; print({', '.join(f'{name}.__version__' for name in packages)})"
    done = subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()


def cases(
    python: Path, files: Iterable[str | Path], expression: str, variables: Mapping[str, str]
) -> list[ElementTree.Element]:
    """Runs the chosen tests in an environment; gives pytest's record of each."""
    report = python.parents[1] / "report.xml"
    command = [str(python), "-m", "pytest", *map(str, files), f"--junitxml={report}", "--tb=short"]
    command += ["-p", "no:cacheprovider", *(["-k", expression] if expression else [])]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **variables})
    return list(ElementTree.parse(report).iter("testcase"))


def passed(found: Iterable[ElementTree.Element]) -> str:
    """How many tests passed of those that weren't skipped, such as ``"12"`` or ``"11 of 12"``."""
    ran = [case for case in found if case.find("skipped") is None]
    bad = sum(any(case.find(kind) is not None for kind in ("failure", "error")) for case in ran)
    return f"{len(ran) - bad} of {len(ran)}" if bad else f"{len(ran)}"


def write(head: str, text: str, titles: list[str], cells: list[str], same: int) -> None:
    """Puts a row into the table of a section, in place of the one whose first ``same`` cells are these."""
    page = TABLE.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(head)}\n.*?(?=^## |\Z)", page, re.M | re.S)
    section = found[0] if found else ""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    rows = sorted([each for each in rows if each[:same] != cells[:same]] + [cells])
    lines = [f"| {' | '.join(each)} |" for each in [titles, ["---"] * len(titles), *rows]]
    made = "\n".join([head, text, *lines, ""])
    if found:
        rest = page[found.end() :]
        page = f"{page[: found.start()]}{made}{chr(10) if rest else ''}{rest}"
    else:
        page = f"{page.rstrip()}\n\n{made}"
    TABLE.write_text(page, encoding="utf-8")
