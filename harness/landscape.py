"""What a search saw of its space: best-so-far curves, and Optuna's own figures of the trials of each condition."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import matplotlib
import numpy as np
from matplotlib import RcParams, pyplot, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.visualization import matplotlib as optunas

from harness.canvas import COLOURS, FONT, LINES, MARKERS, UNITS, WIDTH, Sketch, log_ticks
from harness.drawing import Drawing
from harness.scene import WIDE, Scene, TooFew
from harness.trials import Trials

COLUMNS = 4  # of panels in a row
MOST_CONTOURS = 4  # parameters that a square of panels can hold


@style.context("default")  # whatever the reader has set
def drawings(trials: Trials) -> tuple[list[Drawing], dict[str, list[Drawing]], list[str]]:
    """The figure of all conditions, those of each, and a line for each that is left out. No figure costs more than itself."""
    joint, groups, left = list[Drawing](), dict[str, list[Drawing]](), list[str]()

    def drawn(what: str, draw: Callable[[], Sketch]) -> list[Drawing]:
        try:
            return [draw().drawing()]
        except TooFew as why:
            left.append(f"{what} left out: {why}")
        except Exception as error:
            left.append(f"{what} could not be drawn: {type(error).__name__}: {error}")
        return []

    with matplotlib.rc_context(FONT):
        joint += drawn("best so far", lambda: best_so_far(trials))
    for row in trials.search.study.rows:
        title = row.name if trials.search.study.factors else "the search"
        view = Scene.of(trials, row)
        groups[title] = [
            one
            for name, draw in FIGURES.items()
            for one in drawn(f"{name} of {title}", lambda draw=draw, view=view: draw(view))  # type: ignore[misc]
        ]
    return joint, {title: group for title, group in groups.items() if group}, left


def best_so_far(trials: Trials) -> Sketch:
    """One curve for each condition: its best validation value so far, against trials and against seconds of training."""
    table = trials.table[trials.table.best.notna()]
    if table.empty:
        raise TooFew("no trial came to its end")
    what = trials.search.study.metric.rpartition("_")[2]
    figure = Figure(figsize=(WIDTH, 3.6), dpi=150, layout="constrained")
    for ax, of in zip(figure.subplots(1, 2, sharey=True), ("trials", "core-seconds of training"), strict=True):
        for at, row in enumerate(trials.search.study.rows):
            mine = trials.of(row)
            budget = np.arange(1, len(mine) + 1) if of == "trials" else mine.seconds.cumsum().to_numpy()
            label = row.name if trials.search.study.factors else "best so far"
            look: Any = {"color": COLOURS[at % len(COLOURS)], "ls": LINES[at % len(LINES)], "lw": 1.6}
            there = mine.best.notna().to_numpy()
            ax.step(budget[there], mine.best[there], where="post", marker=MARKERS[at % len(MARKERS)], ms=3, label=label, **look)
        ax.set_xlabel(of)
        ax.grid(alpha=0.3)
    ax = figure.axes[0]
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(f"validation {UNITS[what]}")
    if what == "loss" and table.best.min() > 0 and table.best.max() > WIDE * table.best.min():
        ax.set_yscale("log")
        _plain([ax])
    if trials.search.study.factors:
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    count = len(trials.search.study.seeds)
    caption = (
        f"Validation, mean over {count} seed{'s' * (count != 1)}, of the best trial so far. Left: as trials were asked for; "
        "right: as training steps of all their runs add up, those of pruned trials too. Such a curve can only get better: it "
        "is no estimate of what the setting reaches on other data."
    )
    return Sketch("best-so-far", "Best so far against budget", caption, figure)


# Optuna's own


def history(view: Scene) -> Sketch:
    """Each trial's value and the best so far."""
    if not view.count:
        raise TooFew("no trial came to its end")
    with _ours(WIDTH, 3.2):
        ax = optunas.plot_optimization_history(view.study, target_name=view.words)
        ax.set_title("")
        ax.collections[0].set(color=COLOURS[0], sizes=[22])
        ax.lines[0].set(color=COLOURS[1], alpha=1, drawstyle="steps-post")
        ax.legend(frameon=False)
        if view.wide:
            ax.set_yscale("log")
        _plain([ax])
        _grid([ax])
        said = f"Trials that came to their end ({view.count} of {len(view.study.trials)}), and the best so far."
        return Sketch(f"{view.prefix}history", "Optimization history", said, _kept(ax))


def importances(view: Scene, method: str) -> Sketch:
    """How much of the value's variation each parameter accounts for."""
    view.check()
    evaluators = {"fANOVA": FanovaImportanceEvaluator(seed=0), "PED-ANOVA": PedAnovaImportanceEvaluator()}
    told = view.shown if method == "fANOVA" else {"target_name": view.words}  # PED-ANOVA is of ranks, and so the same
    with _ours(WIDTH, 0.9 + 0.3 * len(view.varied)):
        ax = optunas.plot_param_importances(view.study, evaluators[method], params=view.common(method), **told)
        ax.set_title("", loc="left")
        ax.set(xlabel=f"importance by {method}", ylabel="")
        ax.set_xlim(0, 1.12 * max([bar.get_width() for bar in ax.containers[0]] or [1]) or 1)
        for bar in ax.patches:
            bar.set_color(COLOURS[0])
        for share in ax.texts:
            share.set_text(f" {share.get_text()}")  # apart from its bar
        if (legend := ax.get_legend()) is not None:
            legend.remove()
        _grid([ax], "x")
        said = {
            "fANOVA": "Share of the variance over the space that each parameter accounts for by itself, in a random forest "
            f"fitted to {view.count} trials{' (their log10)' if view.wide else ''} (Hutter et al. 2014); of parameters that "
            "each of them has.",
            "PED-ANOVA": f"By how much the best tenth of {view.count} trials differs from all of them in each parameter "
            "(Watanabe et al. 2023).",
        }[method]
        few = " With fewer than 20 trials the best tenth is one trial." if method == "PED-ANOVA" and view.count < 20 else ""
        said += f"{few} It describes what was tried, which a sampler crowds where it found good values."
        slug = method.lower().replace("-", "_")
        return Sketch(f"{view.prefix}importances-{slug}", f"Importances by {method}", said, _kept(ax))


def slices(view: Scene) -> Sketch:
    """Values against one parameter at a time."""
    view.check()
    rows = -(-len(view.varied) // COLUMNS)
    with _ours(WIDTH, 0.6 + 2.1 * rows):
        axes: list[Any] = np.atleast_1d(np.asarray(optunas.plot_slice(view.study, list(view.varied), **view.shown))).tolist()
        figure = axes[0].figure
        _regrid(figure, axes, rows)
        _plain(axes)
        for ax in axes:
            ax.set_title("")
            for dots in ax.collections:
                dots.set(sizes=[22], linewidth=0.5)
            levels = [label.get_text() for label in ax.get_xticklabels()]
            if any(level.startswith("'") for level in levels):
                ax.set_xticks(ax.get_xticks(), [level.strip("'") for level in levels])
            ax.tick_params(axis="x", labelrotation=30 if any(len(level) > 6 for level in levels) else 0)
        _grid(axes)
        return Sketch(f"{view.prefix}slice", "Slice", f"Each of {view.count} trials, the darker the later.", _kept(axes[0]))


def parallel(view: Scene) -> Sketch:
    """All parameters of a trial as one line."""
    view.check()
    with _ours(WIDTH, 4.0):
        ax = optunas.plot_parallel_coordinate(view.study, list(view.varied), **view.shown)
        ax.set_title("")
        ax.set_xticks(ax.get_xticks(), ["value", *(label.get_text() for label in ax.get_xticklabels()[1:])], rotation=20)
        _plain(ax.figure.axes)
        for other in ax.figure.axes:
            other.tick_params(axis="y", labelsize=7.5)
            for label in other.get_yticklabels():
                label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1})  # lines go below it
        said = f"A line for each of {view.count} trials, the darker the better; on the left its value."
        return Sketch(f"{view.prefix}parallel", "Parallel coordinates", said, _kept(ax))


def contour(view: Scene) -> Sketch:
    """Values over pairs of parameters."""
    view.check()
    if len(view.varied) < 2:
        raise TooFew("only one parameter has several values; it takes two")
    chosen, more = list(view.varied), ""
    if len(chosen) > MOST_CONTOURS:
        with warnings.catch_warnings(action="ignore"):
            ranked = get_param_importances(view.study, evaluator=PedAnovaImportanceEvaluator(), params=chosen)
        chosen, more = list(ranked)[:MOST_CONTOURS], f" Of {len(chosen)} parameters the first {MOST_CONTOURS} by PED-ANOVA."
    size = 3.6 if len(chosen) == 2 else 1.0 + 1.75 * len(chosen)
    with _ours(WIDTH, size):
        axes: list[Any] = np.asarray(optunas.plot_contour(view.study, chosen, **view.shown)).ravel().tolist()
        axes[0].figure.suptitle("")
        _plain(axes)
        for ax in axes:
            ax.set_title("")
            ax.tick_params(labelsize=7.5)
            for dots in ax.collections:
                if len(dots.get_offsets()) and hasattr(dots, "get_sizes") and len(dots.get_sizes()):
                    dots.set(sizes=[8], linewidth=0.4)
        said = (
            f"Interpolated between {view.count} trials (dots), the darker the better; far from dots it is a guess. All other "
            f"parameters vary too.{more}"
        )
        return Sketch(f"{view.prefix}contour", "Contour", said, _kept(axes[0]))


FIGURES: dict[str, Callable[[Scene], Sketch]] = {
    "optimization history": history,
    "importances by fANOVA": lambda view: importances(view, "fANOVA"),
    "importances by PED-ANOVA": lambda view: importances(view, "PED-ANOVA"),
    "slice": slices,
    "parallel coordinates": parallel,
    "contour": contour,
}


@contextmanager
def _ours(width: float, height: float) -> Iterator[None]:
    """Optuna draws by pyplot, in the style `ggplot`. In here that name stands for ours, and nothing that it sets stays."""
    theirs, before = style.library["ggplot"], matplotlib.get_backend(auto_select=False)
    ours: Any = {**FONT, "figure.figsize": (width, height), "figure.constrained_layout.use": True}
    with matplotlib.rc_context(ours), warnings.catch_warnings(action="ignore"):  # they are experimental, all of them
        style.library["ggplot"] = RcParams()
        pyplot.switch_backend("agg")
        try:
            yield
        finally:
            style.library["ggplot"] = theirs
            if before is not None:
                pyplot.switch_backend(before)


def _kept(ax: Axes) -> Figure:
    """The figure of axes, out of pyplot's hands, in its size and layout."""
    figure = cast(Figure, ax.figure)
    pyplot.close(figure)
    figure.set_size_inches(*matplotlib.rcParams["figure.figsize"])
    figure.set_layout_engine("constrained")
    return figure


def _grid(axes: Sequence[Axes], axis: Literal["both", "x", "y"] = "both") -> None:
    for ax in axes:
        ax.set_axisbelow(True)
        ax.grid(axis=axis, alpha=0.3)


def _plain(axes: Sequence[Axes]) -> None:
    """Ticks of logarithmic axes as plain numbers: those of less than two decades lay on one another."""
    for axis in (axis for ax in axes for axis in (ax.xaxis, ax.yaxis) if axis.get_scale() == "log"):
        log_ticks(axis, *sorted(axis.get_view_interval()))


def _regrid(figure: Figure, axes: Sequence[Axes], rows: int) -> None:
    """Panels in rows of a few, in place of one long row."""
    figure.suptitle("")
    bars = [ax for ax in figure.axes if ax not in list(axes)]
    for bar in bars:
        bar.remove()
    figure.supylabel(axes[0].get_ylabel(), fontsize="medium")  # it is longer than a row is high
    grid = figure.add_gridspec(rows, min(COLUMNS, len(axes)))
    for at, ax in enumerate(axes):
        ax.set_subplotspec(grid[at // COLUMNS, at % COLUMNS])
        ax.tick_params(labelleft=at % COLUMNS == 0)
        ax.set_ylabel("")
