import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["vectors"].shape == (4, 64, 16, 16)
    assert names["z_e"].grad is not None


def test_ci_runs_the_readmes_test_command_word_for_word():
    (command,) = [line for line in README.splitlines() if "pytest" in line and "install" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_commands_of_the_readme_exist():
    from vqfast.cli.parser import make_parser

    lines = [line.split("#")[0].split()[1:] for line in README.splitlines() if re.match(r"vqfast \w", line)]
    assert len(lines) >= 6
    for line in lines:
        make_parser().parse_args(line)  # exits on an unknown command or option
