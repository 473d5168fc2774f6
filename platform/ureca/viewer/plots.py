"""Plots for reports and documents, drawn by matplotlib without a display.

    loss_curves   loss over steps, several runs; each a faint raw line under its smoothed one
    score_bars    one metric, one bar per variant, with its interval
    histograms    several panels of counts, each with separate bars
    training      one run: loss, scores of held-out images, speed, and where its time goes
    score_curves  scores over a quantity, each with its interval as a band
    speedups      measured ratios over a growing number, each with its dashed limit

All return a picture's bytes, equal for equal input (no dates inside).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Format = Literal["png", "svg"]

INK, FAINT = "#2b303b", "#d5d8dd"
LINE_COLORS = ("#0f766e", "#b45309", "#4f5bd5", "#9d3c72", "#64748b")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa0aa",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "path",  # same appearance everywhere
    "svg.hashsalt": "ureca",  # otherwise ids inside the SVG would be random
}


@dataclass(frozen=True)
class Curve:
    """Loss of one run."""

    label: str
    steps: Sequence[float]
    losses: Sequence[float]


def smoothed(values: Sequence[float], *, share: float = 0.05) -> NDArray[np.float64]:
    """Return the mean over a centered window of `share` of the values, narrower at the ends."""
    half = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    reach = np.minimum(half, np.minimum(middle, len(values) - 1 - middle))
    first, last = middle - reach, middle + reach + 1
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def loss_curves(curves: Sequence[Curve], *, format: Format = "svg") -> bytes:  # noqa: A002
    """Plot loss over steps. Values that are not finite leave a gap."""
    with rc_context(_STYLE):
        figure, axes = _figure(5.4, 3.2)
        for index, curve in enumerate(curves):
            steps, losses = (np.asarray(each, dtype=np.float64) for each in (curve.steps, curve.losses))
            finite = np.isfinite(losses)
            steps, losses = steps[finite], losses[finite]
            if not len(losses):
                continue
            color = LINE_COLORS[index % len(LINE_COLORS)]
            axes.plot(steps, losses, color=color, alpha=0.22, linewidth=0.8)
            axes.plot(steps, smoothed(losses.tolist()), color=color, linewidth=1.8, label=curve.label)
        axes.set_xlabel("step")
        axes.set_ylabel("loss per caption token")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
        return _bytes(figure, format)


def score_bars(
    title: str,
    scores: Mapping[str, Mapping[str, float]],
    *,
    colors: Mapping[str, str],
    ceiling: float | None = None,
    format: Format = "svg",  # noqa: A002
) -> bytes:
    """Plot horizontal bars of one metric, first on top: `scores` maps a label to {"value", "low", "high"}.

    `ceiling` is marked by a dashed line.
    """
    with rc_context(_STYLE):
        figure, axes = _figure(3.6, 0.62 + 0.3 * len(scores))
        rows = np.arange(len(scores))
        values = np.array([score["value"] for score in scores.values()])
        ends = np.array([[score["low"], score["high"]] for score in scores.values()]).reshape(-1, 2)
        spread = np.clip(np.stack([values - ends[:, 0], ends[:, 1] - values]), 0, None)
        axes.barh(rows, values, color=[colors.get(label, LINE_COLORS[0]) for label in scores], height=0.66)
        axes.errorbar(values, rows, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        limit = max([*ends[:, 1].tolist(), *values.tolist(), ceiling or 0.0, 1e-6]) * 1.04
        if ceiling is not None:
            axes.axvline(ceiling, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlim(0, limit)
        axes.set_yticks(rows, list(scores))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        return _bytes(figure, format)


def histograms(
    panels: Mapping[str, Mapping[str, int]],
    *,
    columns: int = 3,
    format: Format = "png",  # noqa: A002
) -> bytes:
    """Plot a panel per name, with a bar and its number for each of its counts, first on top."""
    num_rows = -(-len(panels) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.4 * columns, 2.6 * num_rows), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(num_rows, columns, squeeze=False).ravel()
        for axes, (title, counts) in zip(grid, panels.items(), strict=False):
            rows = np.arange(len(counts))
            numbers = list(counts.values())
            bars = axes.barh(rows, numbers, color=LINE_COLORS[0], height=0.7)
            axes.bar_label(bars, [f"{number:,}" for number in numbers], padding=2, fontsize=7)
            axes.set_yticks(rows, list(counts))
            axes.set_xlim(0, 1.25 * max([*numbers, 1]))
            axes.set_xticks([])
            axes.spines["bottom"].set_visible(False)
            axes.invert_yaxis()
            axes.tick_params(axis="y", length=0)
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        return _bytes(figure, format)


_SHARES = {"mfu": "MFU", "padding_share": "padding", "data_wait_share": "data wait"}
_SCORES = {"rouge_l": "ROUGE-L", "attribute_accuracy": "attribute accuracy", "uniqueness": "uniqueness"}


def training(lines: Sequence[Mapping[str, Any]], *, format: Format = "png") -> bytes:  # noqa: A002
    """Plot a run from the lines of its metrics.jsonl: four panels over its steps."""
    looks = [line for line in lines if line.get("heldout")]
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {
        "loss": {"": _series(lines, "loss")},
        "held-out images": {
            label: _series([{"step": line["step"], **line["heldout"]} for line in looks], name)
            for name, label in _SCORES.items()
        },
        "regions a second": {"": _series(lines, "regions_per_second")},
        "shares": {label: _series(lines, name) for name, label in _SHARES.items()},
    }
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, series) in zip(figure.subplots(2, 2).ravel(), panels.items(), strict=True):
            for index, (label, (steps, values)) in enumerate(series.items()):
                color = LINE_COLORS[index % len(LINE_COLORS)]
                if not values:
                    continue
                if title == "held-out images":  # few points, each one evaluation
                    axes.plot(steps, values, color=color, marker="o", markersize=3, linewidth=1.2, label=label)
                    continue
                axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
                axes.plot(steps, smoothed(values), color=color, linewidth=1.6, label=label)
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
            axes.set_ylim(bottom=0, top=1 if title == "held-out images" else None)
            axes.set_xlabel("step")
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            if any(label and values for label, (_, values) in series.items()):
                axes.legend(frameon=False, fontsize=8)
            if not any(values for _, values in series.values()):
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#64748b")
        return _bytes(figure, format)


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return steps and finite values of one figure."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None and np.isfinite(line[name])]
    return [float(step) for step, _ in found], [float(value) for _, value in found]


def score_curves(
    curves: Mapping[str, Mapping[float, Mapping[str, float]]],
    *,
    xlabel: str,
    format: Format = "png",  # noqa: A002
) -> bytes:
    """Plot scores that grow to 1: `curves` maps a label to {x: {"value", "low", "high"}}."""
    with rc_context(_STYLE):
        figure, axes = _figure(5.4, 3.2)
        for index, (label, points) in enumerate(curves.items()):
            at = sorted(points)
            color = LINE_COLORS[index % len(LINE_COLORS)]
            low, high, values = ([points[x][end] for x in at] for end in ("low", "high", "value"))
            axes.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)
            axes.plot(at, values, color=color, linewidth=1.8, marker="o", markersize=4, label=label)
        axes.set_ylim(top=1)
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.legend(frameon=False, loc="lower right")
        return _bytes(figure, format)


def speedups(
    curves: Mapping[str, Mapping[int, tuple[float, float]]],
    *,
    xlabel: str,
    format: Format = "svg",  # noqa: A002
) -> bytes:
    """Plot speedups: `curves` maps a label to {number: (speedup, its limit)}; both axes are logarithmic."""
    with rc_context(_STYLE):
        figure, axes = _figure(5.4, 3.4)
        numbers = sorted({number for points in curves.values() for number in points})
        for index, (label, points) in enumerate(curves.items()):
            at = sorted(points)
            color = LINE_COLORS[index % len(LINE_COLORS)]
            axes.plot(at, [points[x][1] for x in at], color=color, linewidth=1.1, linestyle=(0, (3, 2)))
            axes.plot(at, [points[x][0] for x in at], color=color, linewidth=1.8, marker="o", markersize=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.set_xlabel(xlabel)
        axes.set_ylabel("speedup (dashed: its limit)")
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.legend(frameon=False)
        return _bytes(figure, format)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """Return a separate figure, size in inches: pyplot's global state would leak in long jobs."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _bytes(figure: Figure, format: Format) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if format == "svg" else {"Software": None}
    figure.savefig(buffer, format=format, dpi=200, metadata=metadata)
    return buffer.getvalue()
