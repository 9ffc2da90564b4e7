"""The compiler's command that keeps objects, by which tests compile the library more quickly."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.ops.keep import keeping
from tests.ops.test_build import script


def test_what_differs_is_compiled_and_what_is_the_same_is_not(tmp_path: Path) -> None:
    log, source, other = tmp_path / "log", tmp_path / "a.cpp", tmp_path / "b" / "a.cpp"
    other.parent.mkdir()
    compiler = f"""case "$*" in
*--version*) echo 1 ;;
*-E*) for word; do case $word in *.cpp) cat $word ;; esac; done ;;
*) echo "$@" >> {log}; while [ "$1" != -o ]; do shift; done; wc -l < {log} > "$2" ;;
esac"""
    command = keeping(tmp_path / "objects", script(tmp_path / "cxx", compiler))

    def made(path: Path, text: str, *flags: str) -> str:
        path.write_text(text)
        subprocess.run([*command, *flags, f"-I{path.parent}", "-c", path, "-o", tmp_path / "o"], check=True)
        return (tmp_path / "o").read_text().strip()

    assert [made(source, "1"), made(other, "1")] == ["1", "1"]
    assert [made(source, "2"), made(source, "2", "-O3"), made(other, "2"), made(other, "1")] == list("2321")
    subprocess.run([*command, "-shared", "-o", tmp_path / "o"], check=True)
    assert (tmp_path / "o").read_text().strip() == "4"


def test_a_compilation_that_fails_says_so_each_time(tmp_path: Path) -> None:
    failing = script(tmp_path / "cxx", 'case "$*" in *-E*|*--version*) exit 0;; esac; echo no >&2; exit 3')
    command = [*keeping(tmp_path / "objects", failing), "-c", "a.cpp", "-o", "a.o"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (3, "no\n")
