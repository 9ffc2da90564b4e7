"""What a VQ-VAE reaches on held-out photographs by the defaults, by other options and by a peer.

The encoder and the decoder are the paper's with 32 channels, the crops have 32x32 pixels. One seed tries
every layer for 400 steps at the usual rate, and those of ``SWEPT`` at others. Then the defaults, the command
line as it comes, the best other settings and the best of the peer train with more seeds, and for longer.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import photos, training_runs
from benchmarks.core import AbsentError, Case
from benchmarks.training_runs import COMMAND, DEFAULTS, LAYERS, PEER, SWEPT, Reached, Runs, Setting

CASES: list[Case] = []  # nothing is timed
STEPS, LONG = 400, 4000
USUAL = 1e-3  # the rate of most trainings
SEEDS = {STEPS: 3, LONG: 3}
LEADING = 1  # settings of the sweep, besides the defaults, that train with several seeds and for longer


def findings(*, full: bool, photographs: Path | None) -> dict[str, dict[str, dict[str, str]]]:
    """Tables of held-out PSNR and perplexity.

    Args:
        full: all sizes of codebook, rates, seeds and lengths; otherwise K 128 at one rate with one seed.
        photographs: a folder, or ``None`` for those that packages bring.
    """
    try:
        runs = Runs(photos.split(photographs, training_runs.SIZES, training_runs.SIDE), training_runs.RUNS)
    except AbsentError as error:
        print(f"training: {error}", flush=True)
        return {}
    sizes = (128, 512, 8192) if full else (128,)
    tried = {k: results(runs, sweep(k, full=full)) for k in sizes}
    found = {f"K {k}, {STEPS} steps, one seed": by_rate(tried[k]) for k in sizes}
    if not full:
        return found
    best = {k: finalists(tried[k]) for k in sizes}
    for steps, seeds in SEEDS.items():
        for seed in range(seeds):  # of all sizes before the next
            for setting in (setting for k in sizes for setting in best[k]):
                runs(setting._replace(steps=steps, seed=seed))
    for k in sizes:
        for steps, seeds in SEEDS.items():
            settings = [setting._replace(steps=steps) for setting in best[k]]
            name = f"K {k}, {steps} steps, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
            found[name] = {setting.label: over_seeds(runs, setting) for setting in settings}
    return found


def sweep(k: int, *, full: bool) -> list[Setting]:
    """Every layer at the usual rate, and some at other rates."""
    usual = [Setting(name, k, USUAL, STEPS, 0) for name in LAYERS]
    others = [Setting(name, k, lr, STEPS, 0) for name, rates in SWEPT.items() for lr in rates]
    return usual + others if full else usual


def results(runs: Runs, settings: list[Setting]) -> dict[Setting, Reached]:
    """What each setting reaches; settings of an absent package are left out."""
    tried = {}
    for setting in settings:
        try:
            tried[setting] = runs(setting)
        except ImportError as error:
            print(f"training: {setting.layer}: {error}", flush=True)
    return tried


def ranked(tried: dict[Setting, Reached], *, of_peer: bool) -> list[Setting]:
    """The settings of the peer, or all others, from the highest PSNR."""
    own = [setting for setting in tried if setting.layer.startswith(PEER) == of_peer]
    return sorted(own, key=lambda setting: tried[setting].psnr, reverse=True)


def finalists(tried: dict[Setting, Reached]) -> list[Setting]:
    """The defaults at the usual rate, the command line, the best other settings, and the peer's best."""
    usual = next(s for s in tried if s.layer == DEFAULTS and s.lr == USUAL)
    others = [setting for setting in ranked(tried, of_peer=False) if setting != usual]
    return [
        usual,
        usual._replace(layer=COMMAND, lr=None),
        *others[:LEADING],
        *ranked(tried, of_peer=True)[:1],
    ]


def by_rate(tried: dict[Setting, Reached]) -> dict[str, dict[str, str]]:
    """A line for each layer, a column for each rate."""
    rates = sorted({setting.lr for setting in tried if setting.lr is not None})
    table: dict[str, dict[str, str]] = {}
    for setting, (psnr, perplexity, _) in tried.items():
        line = table.setdefault(setting.layer, dict.fromkeys([f"lr {lr:g}" for lr in rates], ""))
        line[f"lr {setting.lr:g}"] = f"{psnr:.2f} dB, {perplexity:.0f} codes"
    return table


def over_seeds(runs: Runs, setting: Setting) -> dict[str, str]:
    """Means over the seeds, and of several the lowest and highest PSNR."""
    reached = [runs(setting._replace(seed=seed)) for seed in range(SEEDS[setting.steps])]
    psnr = [one.psnr for one in reached]
    row = {
        "PSNR": f"{statistics.mean(psnr):.2f} dB",
        "perplexity": f"{statistics.mean(one.perplexity for one in reached):.0f}",
    }
    return row if len(reached) == 1 else {**row, "from, to": f"{min(psnr):.2f}, {max(psnr):.2f}"}
