import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command_word_for_word() -> None:
    (command,) = [line for line in README.splitlines() if "pytest" in line and "install" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_demo_command_stands_in_one_line() -> None:
    (command,) = [line for line in README.splitlines() if "vqfast demo" in line]
    assert command == 'pip install -c constraints.txt ".[demo]" && vqfast demo --out runs/digits'


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_figures_of_the_claims_are_those_of_the_records() -> None:
    """The four claims at the top have no markers: each figure in them is one of a generated table."""
    claims = README[: README.index("```")]
    pages = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("benchmarks", "intel"))
    tables = "".join(re.findall(r"^\|.*", pages, re.MULTILINE))
    figures = re.findall(r"~?[\d.]+x\b|[\d.]+ (?:ms|us|s)\b", claims.replace("32x32", ""))
    assert len(figures) >= 4
    assert all(re.search(rf"(?<![\d.~]){re.escape(figure)}(?![\d.])", tables) for figure in figures)
