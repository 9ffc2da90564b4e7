"""``python -m benchmarks``: runs the suites that are named, or all; see README.md beside this file."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks import core, machine, plots, record, tables

SUITES = (
    "nearest",
    "degenerate",
    "layer",
    "residual_vq",
    "masked_conv",
    "prior_training",
    "sampling",
    "accelerate",
    "end_to_end",
    "first_result",
)
QUICK_ROUNDS, FULL_ROUNDS = 3, 11


def run(name: str, cases: list[core.Case], rounds: int, full: bool) -> dict[str, object]:
    """A suite's part of the record; a case that fails is noted in it, and the others go on."""
    rows, absent, failed = [], {}, {}
    for case in cases:
        began = time.monotonic()
        try:
            rows.append(core.measure(case, rounds, full))
            said = tables.line(rows[-1])
        except core.AbsentError as error:
            said = absent[case.name] = str(error)
        except Exception as error:  # whatever a peer or a kernel may raise
            said = failed[case.name] = f"{type(error).__name__}: {error}"[:500]
        print(f"{name}: {case.name}: {said} [{time.monotonic() - began:.0f} s]", flush=True)
    form = "full" if full else "quick"
    found = {"form": form, "rounds": rounds, "rows": rows, "absent": absent, "failed": failed}
    return {**machine.conditions(), **found}


def record_suites(names: list[str], rounds: int, full: bool, where: Path | None = None) -> Path:
    """Measures the suites, one after the other into the record of this device; where that is."""
    where = where or record.path(machine.name())
    for name in names:
        module = import_module(f"benchmarks.{name}")
        suite = run(name, module.CASES, rounds, full)
        suite["peak"] = core.peak()._asdict()
        if hasattr(module, "findings"):
            suite["findings"] = module.findings()
        record.add(where, machine.name(), {name: suite})
    return where


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 unless something failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--full", action="store_true", help="all shapes and peers, more rounds; an hour")
    parser.add_argument("--rounds", type=int, help=f"default {QUICK_ROUNDS}, with --full {FULL_ROUNDS}")
    parser.add_argument("--pages", action="store_true", help="only make all tables and plots anew")
    parser.add_argument("--gpu-gate", action="store_true", help="tests, benchmarks and tunings on a GPU")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(SUITES):
        parser.error(f"there is no suite {', '.join(sorted(unknown))}; want some of {', '.join(SUITES)}")
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds is {asked.rounds}; want 1 or more")
    if asked.pages:
        for where in record.paths():
            plots.draw(where)
        for page in tables.PAGES:
            page.write_text(tables.filled(page.read_text(), page.parent))
        return 0
    rounds = asked.rounds or (FULL_ROUNDS if asked.full else QUICK_ROUNDS)
    names = asked.names or list(SUITES)
    if asked.gpu_gate:
        from benchmarks import gate

        return gate.main(lambda: record_suites(names, rounds, asked.full))
    where = record_suites(names, rounds, asked.full)
    found = record.read(where)
    print(f"\n{tables.printed(found)}\nwritten to {where}, plots beside it")
    plots.draw(where)
    return int(any(found["suites"][name]["failed"] for name in names))


if __name__ == "__main__":
    sys.exit(main())
