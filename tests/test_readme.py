import re
from pathlib import Path

import pytest

from vqfast import VQVAE, PixelCNN
from vqfast.pipeline.checkpoint import save_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save_model(Path("runs/photos"), "vqvae", VQVAE(hidden_channels=8, num_embeddings=8))
    save_model(Path("runs/photos"), "prior", PixelCNN(8, channels=8, num_layers=2, head_channels=8))
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["vectors"].shape == (4, 64, 16, 16)
    assert names["z_e"].grad is not None
    assert names["images"].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_the_python_of_the_documentation_runs(page):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
        exec(compile(block, page.name, "exec"), names)


def test_ci_runs_the_readmes_test_command_word_for_word():
    (command,) = [line for line in README.splitlines() if "pytest" in line and "install" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_commands_of_the_readme_exist():
    from vqfast.cli.parser import make_parser

    lines = [line.split("#")[0].split()[1:] for line in README.splitlines() if re.match(r"vqfast \w", line)]
    assert len(lines) >= 6
    for line in lines:
        make_parser().parse_args(line)  # exits on an unknown command or option
