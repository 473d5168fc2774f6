import io

import numpy as np
import pytest
from PIL import Image

from ureca.viewer.plots import Curve, loss_curves, score_bars, score_curves, smoothed, speedups, training

CURVES = [
    Curve("stage 1", list(range(100)), np.linspace(4, 1, 100).tolist()),
    Curve("<b>stage 2</b>", [0, 10], [3.0, float("nan")]),
]
SCORES = {
    "base": {"value": 0.1, "low": 0.05, "high": 0.2},
    "stage 2": {"value": 0.7, "low": 0.65, "high": 0.72},
}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_curves_as_svg_and_png():
    assert loss_curves(CURVES).startswith(b"<?xml")
    picture = pixels(loss_curves(CURVES, format="png"))
    assert picture.std() > 5
    assert picture.shape[1] > 800


def test_pictures_are_the_same_every_time_and_hold_no_date():
    assert loss_curves(CURVES) == loss_curves(CURVES)
    assert score_bars("ROUGE-L", SCORES, colors={}) == score_bars("ROUGE-L", SCORES, colors={})
    assert b"<dc:date>" not in loss_curves(CURVES)


def test_a_higher_score_is_a_longer_bar():
    color = {"base": "#ff0000", "stage 2": "#0000ff"}
    picture = pixels(score_bars("ROUGE-L", SCORES, colors=color, format="png"))
    red = (picture == (255, 0, 0)).all(axis=2).any(axis=0).sum()
    blue = (picture == (0, 0, 255)).all(axis=2).any(axis=0).sum()
    assert blue == pytest.approx(7 * red, rel=0.05)


def test_the_ceiling_is_drawn():
    without = score_bars("uniqueness", SCORES, colors={}, format="png")
    assert (pixels(score_bars("uniqueness", SCORES, colors={}, ceiling=0.7, format="png")) != pixels(without)).any()


def test_a_run_without_a_finite_loss_leaves_an_empty_plot():
    assert loss_curves([Curve("diverged", [0, 1], [float("nan"), float("inf")])], format="png")


def test_smoothing_keeps_a_line_and_takes_noise_away():
    line = np.linspace(5, 1, 200)
    np.testing.assert_allclose(smoothed(line.tolist()), line, atol=1e-9)
    noise = np.random.default_rng(0).normal(size=400)
    assert smoothed(noise.tolist()).std() < 0.4 * noise.std()
    assert smoothed([2.0]).tolist() == [2.0]


def test_a_run_s_panels_show_what_was_measured_and_say_what_was_not():
    lines = [
        {
            "step": step,
            "loss": 4.0 / step,
            "regions_per_second": 100.0 + step,
            "mfu": 0.4,
            "padding_share": 0.0,
            "data_wait_share": 0.01,
            **({"heldout": {"rouge_l": step / 60, "uniqueness": 0.5}} if step % 20 == 0 else {}),
        }
        for step in range(1, 61)
    ]
    whole = training(lines)
    assert pixels(whole).shape[1] > 1000
    assert whole == training(lines)
    without = [{key: value for key, value in line.items() if key != "heldout"} for line in lines]
    assert not np.array_equal(pixels(training(without)), pixels(whole))
    assert pixels(training([{"step": 1, "loss": float("nan")}])).shape == pixels(whole).shape


def test_a_measured_ratio_stands_below_its_dashed_limit():
    """A speed-up that is its limit covers it; one far below leaves the dashes alone."""
    points = {1: (1.0, 1.0), 16: (8.0, 8.0), 64: (16.0, 16.0)}
    reached = pixels(speedups({"6 tiles": points}, xlabel="regions per image", format="png"))
    missed = pixels(speedups({"6 tiles": {x: (y / 4, y) for x, (y, _) in points.items()}}, xlabel="", format="png"))
    teal = (15, 118, 110)
    assert (missed == teal).all(axis=2).sum() > (reached == teal).all(axis=2).sum() > 0


def test_scores_grow_from_left_to_right_inside_their_bands():
    def drawn(high):
        score = {"value": 0.5, "low": 0.4, "high": high}
        return pixels(score_curves({"ROUGE-L": {9.0: score, 69.0: score}}, xlabel="regions, thousands"))

    narrow, wide = drawn(0.55), drawn(0.9)
    assert narrow.std() > 5
    assert (wide < 250).any(axis=2).sum() > (narrow < 250).any(axis=2).sum(), "the band is as high as its interval"
