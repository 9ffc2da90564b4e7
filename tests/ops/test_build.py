"""Compilers, caches and installed libraries that are broken, each in its own way."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.ops.test_library import FALLBACK, USE, counted, finish, links, start  # noqa: F401
from vqfast.ops import build, library


def script(path: Path, body: str) -> list[str]:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return [str(path)]


def writes(path: Path, what: Path) -> list[str]:
    """A compiler that exits with 0 and writes the contents of ``what``, whatever its arguments are."""
    return script(path, f'while [ "$1" != -o ]; do shift; done\ncp {what} "$2"')


def c_library(target: Path, source: str, *flags: str) -> Path:
    """A library of C code. Skips the test where there is no compiler."""
    if (reason := library.unavailable()) is not None:
        pytest.skip(reason)
    command = [*build.find_compiler(), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(target), *flags]
    subprocess.run(command, input=source.encode(), check=True)
    return target


def sealed(target: Path) -> Path:
    """Writes the digest of a library beside it, as ``build`` does."""
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    target.with_suffix(".sha256").write_text(f"{digest}  {target.name}\n")
    return target


@pytest.mark.parametrize(
    "asked, arguments",
    [("sh", []), ("sh -m64", ["-m64"]), ("env sh", ["sh"]), ("'sh' -D'A=1 2'", ["-DA=1 2"])],
)
def test_cxx_is_a_command_line(monkeypatch: pytest.MonkeyPatch, asked: str, arguments: list[str]) -> None:
    monkeypatch.setenv("CXX", asked)
    program, *rest = build.find_compiler()
    assert Path(program).name == shlex.split(asked)[0]
    assert rest == arguments


def test_cxx_is_a_program_with_a_space_or_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = script(tmp_path / "a compiler", "exit 0")
    monkeypatch.setenv("CXX", program[0])
    assert build.find_compiler() == program
    for asked in ("'unbalanced", "no such program"):
        monkeypatch.setenv("CXX", asked)
        with pytest.raises(RuntimeError, match=asked):
            build.find_compiler()


def test_windows_has_no_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(build.os, "name", "nt")
        raised = pytest.raises(RuntimeError, match="there is no native library for Windows yet")
        with raised:
            build.find_compiler()


def test_a_link_to_a_compiler_is_called_by_its_own_name(tmp_path: Path, monkeypatch) -> None:
    """``clang++`` and ccache's ``g++`` are links whose name says what to do."""
    script(tmp_path / "ccache", "exit 0")
    (tmp_path / "g++").symlink_to("ccache")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.find_compiler() == [str(tmp_path / "g++")]


@pytest.mark.parametrize(
    "flags, own",
    [
        ("flags\t\t: fpu sse2 avx2 fma avx512f", ["portable", "avx2"]),
        ("flags\t\t: fpu avx2", ["portable"]),
        (
            "flags : avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16 avx512_vnni"
            " amx_tile amx_int8 amx_bf16",
            list(build.INSTRUCTION_SETS),
        ),
        ("Features : asimd", ["portable", "neon"]),
        (None, []),
    ],
)
def test_instruction_sets_of_this_cpu(tmp_path: Path, monkeypatch, flags: str | None, own: list[str]) -> None:
    monkeypatch.setattr(build, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(build, "_may_use_tiles", lambda: True)
    if flags:
        build.CPU.write_text(f"processor\t: 0\n{flags}\n")
    assert build.own_instruction_sets() == [name for name in own if name in build.INSTRUCTION_SETS]
    monkeypatch.setattr(build, "_may_use_tiles", lambda: False)
    assert build.own_instruction_sets() == [
        name for name in own if name in build.INSTRUCTION_SETS and name != "amx"
    ]


@pytest.mark.parametrize("written", ["junk", "nothing", "another library"])
def test_a_compiled_library_is_loaded_before_it_is_kept(tmp_path: Path, written: str) -> None:
    what = tmp_path / "what"
    if written == "another library":
        c_library(what, "int other;")
    else:
        what.write_bytes(b"junk" if written == "junk" else b"")
    target = tmp_path / "native.so"
    with pytest.raises(RuntimeError, match="wrote can't be loaded"):
        build.build(target, writes(tmp_path / "compiler", what))
    assert not target.exists()


def test_a_compilers_message_may_be_any_bytes(tmp_path: Path) -> None:
    compiler = script(tmp_path / "compiler", "printf 'caf\\351: \\377' >&2; exit 3")
    with pytest.raises(RuntimeError, match="compiler failed \\(3\\): caf\ufffd: \ufffd"):
        build.build(tmp_path / "native.so", compiler)


def test_a_compiler_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SECONDS", 0.1)
    with pytest.raises(RuntimeError, match=r"it took more than 0\.1 s"):
        build.build(tmp_path / "native.so", script(tmp_path / "compiler", "exec sleep 60"))


def test_an_instruction_set_that_crashes_the_compiler_is_left_out_and_named(tmp_path: Path, counted) -> None:  # noqa: F811
    compiler, calls = counted
    crash = 'case "$*" in *-Dcrash*nearest.cpp*) kill -SEGV $$;; esac'
    crashing = script(tmp_path / "crashing", f'{crash}\nexec {compiler} "$@"')
    code = f"""
build.INSTRUCTION_SETS["crashing"] = ["-Dcrash"]
{FALLBACK}"""
    warning, refusal = finish(start(code, tmp_path, CXX=crashing[0])).splitlines()
    said = "nearest/nearest.cpp: crashing was ended by SIGSEGV"
    assert warning == f"1 vqfast's native library is without crashing: {said}"
    assert refusal == "None"
    linked = calls.read_text().splitlines()[-1]
    assert "portable.o" in linked
    assert "crashing.o" not in linked


def test_a_held_lock_is_told_and_not_waited_for_without_end(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(library, "_SAY_AFTER", 0.05)
    monkeypatch.setattr(library, "_GIVE_UP_AFTER", 0.3)
    lock = tmp_path / "native.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waits = pytest.raises(RuntimeError, match="another process has held")
        with waits, library._locked(lock):
            pass
    assert [record.message for record in caplog.records] == [
        f"vqfast waits for another process that compiles its native library ({lock})"
    ]
    with library._locked(lock):
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is used while nobody else can write to it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    return tmp_path / "home" / "vqfast"


def test_the_cache_is_a_new_folder_of_the_users(cache: Path) -> None:
    assert library._cache() == cache
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o1777])
@pytest.mark.parametrize("above", [False, True])
def test_a_cache_that_others_write_to_is_not_used(cache: Path, mode: int, above: bool) -> None:
    library._cache()
    (cache.parent if above else cache).chmod(mode)
    other = cache.parents[1] / "temporary" / f"vqfast-{os.geteuid()}"
    kept = above and mode == 0o1777  # what is in a sticky folder only its owner replaces
    assert library._cache() == (cache if kept else other)
    if not kept:
        other.chmod(0o777)
        with pytest.raises(RuntimeError, match="want XDG_CACHE_HOME to name"):
            library._cache()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_cache_that_another_user_owns_is_not_used(cache: Path) -> None:
    target = library._cache() / "native.so"
    target.write_bytes(b"")
    sealed(target)
    assert library._usable(target)
    os.chown(target, 12345, -1)
    assert not library._usable(target)
    os.chown(cache, 12345, -1)
    assert library._cache() != cache


def test_a_library_that_others_write_to_or_that_is_a_link_is_not_used(cache: Path) -> None:
    target = library._cache() / "native.so"
    target.write_bytes(b"")
    target.chmod(0o600)
    sealed(target)
    assert library._usable(target)
    target.chmod(0o620)
    assert not library._usable(target)
    target.chmod(0o600)
    link = target.with_name("link.so")
    link.symlink_to(target)
    assert not library._usable(link)


@pytest.mark.slow
def test_a_planted_library_does_not_run(tmp_path: Path, counted) -> None:  # noqa: F811
    """It has the right name, and the digest that it would have."""
    compiler, calls = counted
    ran = tmp_path / "ran"
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    places = {"CXX": compiler, "TMPDIR": str(temporary), "VQFAST_BACKEND": "native"}
    temporary.mkdir()
    finish(start(USE, home, **places))
    (target,) = home.glob("vqfast/*.so")
    code = (
        '#include <fstream>\nstatic int ran = (std::ofstream("%s"), 0); extern "C" void vqfast_register() {}'
    )
    sealed(c_library(target, code % ran))
    target.parent.chmod(0o777)
    assert finish(start(USE, home, **places)) == "[0, 0, 0]\n"
    assert not ran.exists()
    assert links(calls) == 2
    target.parent.chmod(0o700)  # the code would run
    assert build.refusal(target) is None
    assert ran.exists()


INSTALLED = """
build.PREBUILT = Path({path!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    nearest_code(torch.ones(3, 2), torch.eye(2))
print([str(warning.message) for warning in caught])
print(registry.refusal("nearest", "native", torch.zeros(1)))
"""


def changed(library: Path, how: str) -> bytes:
    """The bytes of a library that was damaged or changed."""
    data = bytearray(library.read_bytes())
    if how == "empty":
        return b""
    if how == "cut":
        return bytes(data[: len(data) // 2])
    if how == "of another machine":  # e_machine of an ELF header; no machine has this number
        data[18:20] = b"\xfe\xca"
    if how == "one bit differs":  # the loader doesn't see it
        data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "installed, reason",
    [
        ("without a digest", None),
        ("cut", "native.so is damaged: "),
        ("empty", "file too short"),
        ("of another machine", "native.so is damaged: "),
        ("one bit differs", "native.so is damaged: it isn't as it was built, native.sha256 says"),
        ("of a newer system", "none_such"),
        ("another", "vqfast_choose"),
    ],
)
def test_an_installed_library_that_can_not_run_is_explained_and_replaced(
    tmp_path: Path,
    counted,  # noqa: F811
    installed: str,
    reason: str | None,
) -> None:
    """Compiled anew if there is a compiler; else plain PyTorch runs. One warning says why."""
    compiler, calls = counted
    made = build.PREBUILT if build.PREBUILT.exists() else library._compiled()
    target = tmp_path / "native.so"
    if installed == "another":
        sealed(c_library(target, "int other;"))
    elif installed == "of a newer system":
        sealed(c_library(target, "void none_such(); void f() { none_such(); }", "-Wl,-z,now"))
    else:
        target.write_bytes(made.read_bytes())
        if reason:
            sealed(target)
        target.write_bytes(changed(made, installed))
    code = INSTALLED.format(path=str(target))
    warned, refusal = finish(start(code, tmp_path / "cache", CXX=compiler)).splitlines()
    assert refusal == "None"
    if reason is None:  # somebody changed it on purpose
        assert warned == "[]"
        assert not calls.exists()
        return
    assert warned.count("vqfast compiled its native library anew: ") == 1
    assert reason in warned
    assert links(calls) == 1
    warned, refusal = finish(start(code, tmp_path / "empty", CXX="no-such-compiler")).splitlines()
    (warning,) = ast.literal_eval(warned)
    assert warning.startswith("vqfast runs plain PyTorch on CPUs, which is slower: ")
    assert reason in warned and reason in refusal
    assert "no C++ compiler (no-such-compiler) found" in warned


def test_the_longest_files_are_compiled_first_and_each_at_its_level(tmp_path: Path, monkeypatch) -> None:
    """With one worker, so that the commands come one after another."""
    monkeypatch.setattr(build.os, "cpu_count", lambda: 1)
    log, own = tmp_path / "log", build.instruction_sets(build.platform.machine())
    compiler = script(
        tmp_path / "cxx", f'echo "$@" >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho > "$2"'
    )
    best = list(own)[-1]
    build.build(tmp_path / "native.so", compiler, ["portable", best], foreign=True)
    compiled = [line.split() for line in log.read_text().splitlines() if " -c " in line]
    folders = [Path(words[words.index("-c") + 1]).parent.name for words in compiled]
    assert folders[0] == "nearest" and folders[-1] == "residual"
    assert set(folders) >= set(build.LEVELS)
    for folder, words in zip(folders, compiled, strict=True):
        level = [word for word in words if word.startswith("-O")][-1]  # compilers take the last one
        assert level == build.LEVELS.get(folder, ["-O3"])[-1]


def test_all_host_sides_are_in_the_one_that_is_compiled() -> None:
    root = build.SOURCES
    included = re.findall(r'#include "(.+\.cpp)"', (root / "host" / "host.cpp").read_text())
    sides = [
        path for path in root.rglob("*.cpp") if path.parent.name == "host" or path.stem.startswith("host")
    ]
    assert sorted(included) == sorted(
        path.relative_to(root).as_posix() for path in sides if path != root / "host" / "host.cpp"
    )
