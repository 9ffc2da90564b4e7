"""The curves of a training."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vqfast.pipeline.curves import draw_curves


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """The matplotlib figures that are saved."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig

    def spy(self: Figure, *args, **kwargs) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def test_curves(figures: list) -> None:
    steps = list(range(0, 1000, 10))
    falling = [np.exp(-step / 200) + 1e-4 for step in steps]
    flat = [2.0 + step % 3 for step in steps]
    negative = [0.5 - value for value in falling]
    gappy = [value if step % 50 == 0 else float("nan") for value, step in zip(falling, steps, strict=True)]
    history = {"loss": falling, "codes used": falling, "nll": flat, "log loss": negative, "val_mse": gappy}
    png = draw_curves({"step": steps, **history}, title=r"no $\mathematics$ here")
    assert png == draw_curves({"step": steps, **history}, title=r"no $\mathematics$ here")
    with Image.open(io.BytesIO(png)) as picture:
        assert set(picture.info) <= {"dpi"}
        assert 1000 < picture.width < 2000 and picture.getpixel((0, 0))[:3] == (255, 255, 255)
    panels = dict(zip(history, figures[0].axes, strict=True))
    assert [panel.get_yscale() for panel in panels.values()] == ["log", "linear", "linear", "linear", "log"]
    assert {panel.get_xlabel() for panel in panels.values()} == {"step"}
    assert [panel.get_ylabel() for panel in panels.values()] == list(history)
    raw, smooth = panels["nll"].lines  # long: the raw values faint, a smoothed line on top
    assert raw.get_ydata().tolist() == flat and raw.get_alpha() < 0.5
    assert smooth.get_ydata().std() < raw.get_ydata().std() / 2
    np.testing.assert_allclose(smooth.get_ydata(), 3, atol=0.8)
    (short,) = panels["val_mse"].lines  # what is not finite is left out
    assert short.get_xdata().tolist() == list(range(0, 1000, 50))


def test_curves_with_nothing_finite(figures: list) -> None:
    draw_curves({"step": [1, 2], "loss": [float("nan"), float("inf")], "mse": [0.0, 1.0]}, title="t")
    assert figures[0].axes[0].get_title("right") == "no finite value"
    assert figures[0].axes[1].get_yscale() == "linear"  # zero has no logarithm


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"step": [1]}, "history has 0 metrics at 1 steps; want one or more of both"),
        ({"a": [], "step": []}, "history has 1 metrics at 0 steps"),
        ({"a": [1.0]}, "history has 1 metrics at 0 steps"),
        ({"a": [1.0], "step": [1, 2]}, "history has 1 values of 'a'; want 2, one for each step"),
    ],
)
def test_nothing_to_draw(history: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_curves(history, title="t")
