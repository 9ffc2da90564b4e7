"""What a VQ-VAE reaches on held-out photographs by the defaults, by other options and by a peer.

The encoder and the decoder are the paper's with 32 channels, the crops have 32x32 pixels. One seed tries
every layer at every rate for 400 steps, and the leading ones for 4,000. Then the defaults, the best of all,
the best options of the peer, and the command line as it comes, train with three seeds.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import photos, training_runs
from benchmarks.core import AbsentError, Case
from benchmarks.training_runs import COMMAND, DEFAULTS, LAYERS, PEER, Reached, Runs, Setting

CASES: list[Case] = []  # nothing is timed
STEPS, LONG = 400, 4000
RATES = (3e-4, 1e-3, 3e-3)
USUAL = 1e-3  # the rate of most trainings
LEADING = 3  # settings of 400 steps that go on to 4,000
LARGE = 1024  # code vectors above which the peer has one seed; a step with 8192 takes a fifth of a second


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
    found: dict[str, dict[str, dict[str, str]]] = {}
    for k in (128, 512, 8192) if full else (128,):
        settings = [Setting(name, k, lr, STEPS, 0) for name in LAYERS for lr in RATES]
        tried = results(runs, [setting for setting in settings if full or setting.lr == USUAL])
        found[f"K {k}, {STEPS} steps, one seed"] = by_rate(tried)
        if full:
            found[f"K {k}, {STEPS} steps, three seeds"] = by_seed(runs, finalists(tried))
            leading = [setting._replace(steps=LONG) for setting in leaders(tried)]
            found[f"K {k}, {LONG} steps, three seeds"] = by_seed(runs, finalists(results(runs, leading)))
    return found


def results(runs: Runs, settings: list[Setting]) -> dict[Setting, Reached]:
    """What each setting reaches; settings of an absent package are left out, and slow ones at other rates."""
    tried = {}
    for setting in settings:
        if slow(setting) and setting.lr != USUAL:
            continue
        try:
            tried[setting] = runs(setting)
        except ImportError as error:
            print(f"training: {setting.layer}: {error}", flush=True)
    return tried


def slow(setting: Setting) -> bool:
    """Whether a training takes too long to be repeated."""
    return setting.layer.startswith(PEER) and setting.k > LARGE


def ranked(tried: dict[Setting, Reached], *, of_peer: bool) -> list[Setting]:
    """The settings of the peer, or all others, from the highest PSNR."""
    own = [setting for setting in tried if setting.layer.startswith(PEER) == of_peer]
    return sorted(own, key=lambda setting: tried[setting].psnr, reverse=True)


def leaders(tried: dict[Setting, Reached]) -> list[Setting]:
    """The defaults at every rate, the best other settings, and the peer's best."""
    ours = ranked(tried, of_peer=False)
    defaults = [setting for setting in ours if setting.layer == DEFAULTS]
    others = [setting for setting in ours if setting.layer != DEFAULTS]
    return [*defaults, *others[:LEADING], *ranked(tried, of_peer=True)[:1]]


def finalists(tried: dict[Setting, Reached]) -> list[Setting]:
    """The defaults at the usual rate, the best of all settings, the peer's best, and the command line."""
    usual = next(s for s in tried if s.layer == DEFAULTS and s.lr == USUAL)
    best = [usual, *ranked(tried, of_peer=False)[:1], *ranked(tried, of_peer=True)[:1]]
    return list(dict.fromkeys([*best, usual._replace(layer=COMMAND, lr=None)]))


def by_rate(tried: dict[Setting, Reached]) -> dict[str, dict[str, str]]:
    """A line for each layer, a column for each rate."""
    rates = sorted({setting.lr for setting in tried if setting.lr is not None})
    table: dict[str, dict[str, str]] = {}
    for setting, (psnr, perplexity, _) in tried.items():
        line = table.setdefault(setting.layer, dict.fromkeys([f"lr {lr:g}" for lr in rates], ""))
        line[f"lr {setting.lr:g}"] = f"{psnr:.2f} dB, {perplexity:.0f} codes"
    return table


def by_seed(runs: Runs, settings: list[Setting]) -> dict[str, dict[str, str]]:
    """A line for each setting: means over three seeds, and the lowest and highest PSNR."""
    table = {}
    for setting in settings:
        seeds = range(1 if slow(setting) else 3)
        reached = [runs(setting._replace(seed=seed)) for seed in seeds]
        psnr = [one.psnr for one in reached]
        table[setting.label + (", one seed" if slow(setting) else "")] = {
            "PSNR": f"{statistics.mean(psnr):.2f} dB",
            "from, to": f"{min(psnr):.2f}, {max(psnr):.2f}",
            "perplexity": f"{statistics.mean(one.perplexity for one in reached):.0f}",
        }
    return table
