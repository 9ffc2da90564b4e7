"""The chi-square test of counts."""

from __future__ import annotations

import numpy as np
import scipy.stats


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The p-value of counts with these probabilities. Bins that expect fewer than ten counts are merged."""
    expected = probabilities * counts.sum()
    small = expected < 10
    if small.any():
        counts, expected = (np.append(a[~small], a[small].sum()) for a in (counts, expected))
    return scipy.stats.chisquare(counts, expected).pvalue
