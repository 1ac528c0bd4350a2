"""Figures of the report: SVG for plots, PNG for camera frames. No pyplot, so that no display is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from r3l.evaluation.report.visits import BINS, ObjectAxis, Values
from r3l.run.experience import PHASES

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#6b6b6b", "#30363d"
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
PHASE_COLOURS = {"exploration": GREY, "task": BLUE, "perturbation": ORANGE}
PHASE_STYLES = {"exploration": ":", "task": "-", "perturbation": "--"}
STYLE: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "legend.handlelength": 2.8,
    "svg.hashsalt": "r3l",
    "figure.facecolor": "white",
}
SIZE = (4.8, 3.0)


@dataclass(frozen=True)
class Curve:
    """A line of a plot, with an optional band around it."""

    label: str
    x: Sequence[float] | Values
    y: Sequence[float] | Values
    colour: str = BLUE
    style: str = "-"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Level:
    """A labelled horizontal line."""

    label: str
    y: float


def curves(
    lines: Sequence[Curve],
    y_label: str,
    *,
    level: Level | None = None,
    learning_from: float | None = None,
    y_range: tuple[float, float] | None = None,
    is_log: bool = False,
) -> bytes:
    """Draw lines over env steps; `learning_from` marks the end of exploration, `is_log` allows a logarithmic axis."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("env steps", y_label)
        _thousands(axes)
        for line in lines:
            marker = "o" if len(line.x) < 40 else ""
            axes.plot(line.x, line.y, line.style, color=line.colour, label=line.label, marker=marker, ms=3.5, lw=1.6)
            if line.low is not None and line.high is not None:
                band: Any = {"color": line.colour, "alpha": 0.15, "lw": 0, "label": "95% interval"}
                axes.fill_between(line.x, line.low, line.high, **band)
        if level is not None:
            axes.axhline(level.y, color=INK, lw=1, ls=(0, (5, 3)), label=level.label)
        if learning_from is not None and learning_from < max(max(line.x) for line in lines):
            axes.axvline(learning_from, color=GREY, lw=1, ls=":", label="exploration ends")
        if is_log:
            _logarithmic(axes, lines)
        if y_range is not None:
            axes.set_ylim(*y_range)
        axes.set_xlim(left=0)
        return _svg(figure, axes)


def over_object(axis: ObjectAxis, x: Values, y: Values, y_label: str, level: Level | None = None) -> bytes:
    """Scatter a value over the place of the object, with its mean per bin."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(axis.label, y_label)
        _goal(axes, axis)
        axes.scatter(x, y, s=5, color=GREY, alpha=0.35, lw=0, label="one frame", rasterized=True)
        edges = np.linspace(axis.low, axis.high, BINS + 1)
        count = np.histogram(x, edges)[0]
        total = np.histogram(x, edges, weights=y)[0]
        mean = np.divide(total, count, out=np.full(BINS, np.nan), where=count > 0)
        axes.plot((edges[1:] + edges[:-1]) / 2, mean, color=ORANGE, lw=2, marker="o", ms=2.5, label="mean")
        if level is not None:
            axes.axhline(level.y, color=INK, lw=1, ls=(0, (5, 3)), label=level.label)
        _span(axes, axis)
        return _svg(figure, axes)


def visits(axis: ObjectAxis, phase: NDArray[np.int64]) -> bytes:
    """Draw the histogram of the object's places, one outline per phase."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(axis.label, "share of the phase's env steps")
        _goal(axes, axis)
        for number, name in enumerate(PHASES):
            values = axis.values[(phase == number) & np.isfinite(axis.values)]
            if len(values):
                count, edges = np.histogram(values, BINS, (axis.low, axis.high))
                label = f"{name} ({len(values):,} steps)"
                style = PHASE_STYLES[name]
                axes.stairs(count / len(values), edges, label=label, color=PHASE_COLOURS[name], ls=style, lw=1.8)
        axes.axhline(1 / BINS, color=INK, lw=0.8, ls=(0, (1, 3)), label="all places equally often")
        axes.set_ylim(bottom=0)
        _span(axes, axis)
        return _svg(figure, axes)


def where_when(axis: ObjectAxis, phase: NDArray[np.int64]) -> bytes:
    """Draw the object's place over the whole run, one dot per shown step, coloured by phase."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("env steps", axis.label)
        _thousands(axes)
        for low, high in axis.success:
            axes.axhspan(low, high, color=GREEN, alpha=0.18, lw=0, label="success" if low == axis.success[0][0] else "")
        shown = np.arange(0, len(phase), max(1, len(phase) // 6000))
        for number, name in enumerate(PHASES):
            chosen = shown[phase[shown] == number]
            if len(chosen):
                style: Any = {"s": 3, "color": PHASE_COLOURS[name], "alpha": 0.6, "lw": 0, "rasterized": True}
                axes.scatter(chosen + 1, axis.values[chosen], label=name, **style)
        axes.set_ylim(axis.low, axis.high)
        axes.set_xlim(0, len(phase))
        if axis.is_circular:
            axes.set_yticks([-180, -90, 0, 90, 180])
        return _svg(figure, axes, marker_scale=3)


def png(image: NDArray[np.uint8]) -> bytes:
    """Return an image [H, W, 3] as PNG."""
    content = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(content, "PNG", optimize=True)
    return content.getvalue()


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(SIZE, dpi=150, layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.set_axisbelow(True)
    return figure, axes


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(lambda value, position: f"{value / 1000:g}k" if value else "0")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def _logarithmic(axes: Axes, lines: Sequence[Curve]) -> None:
    """Make the y axis logarithmic if the values are positive and span a factor of 8 or more."""
    values = np.concatenate([np.asarray(line.y, np.float64) for line in lines])
    if values.min() <= 0 or values.max() < 8 * values.min():
        return
    axes.set_yscale("log")
    is_wide = values.max() > 300 * values.min()
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _goal(axes: Axes, axis: ObjectAxis) -> None:
    for index, (low, high) in enumerate(axis.success):
        axes.axvspan(low, high, color=GREEN, alpha=0.18, lw=0, label="" if index else "success")
    if axis.goal is not None:
        axes.axvline(axis.goal, color=GREEN, lw=1.4, label="goal")


def _span(axes: Axes, axis: ObjectAxis) -> None:
    axes.set_xlim(axis.low, axis.high)
    if axis.is_circular:
        axes.set_xticks([-180, -90, 0, 90, 180])


def _svg(figure: Figure, axes: Axes, *, marker_scale: float = 1) -> bytes:
    """Return the figure as SVG, with its legend above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 2 if len(labels) > 3 or max(map(len, labels)) > 14 else len(labels)
        legend: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "markerscale": marker_scale}
        figure.legend(handles, labels, **legend)
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    return content.getvalue()
