"""Figures of a run: how they are drawn. That they are written, and what their loss costs, is in test_launch and test_disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from harness import plots
from harness.histograms import Histogram
from harness.results import EpochRecord


def drawn(write: Any) -> Figure:
    """The figure behind what writes it."""
    figure: Figure = write.func.__self__.figure
    figure.canvas.draw()
    return figure


def trained(epochs: int) -> list[EpochRecord]:
    def curves(at: int) -> dict[str, float]:
        return {
            "train/loss": 2 / (at + 1),
            "test/loss": 3 / (at + 1),
            "train/accuracy": 0.1 + 0.6 * at / epochs,
            "test/accuracy": 0.15 + 0.6 * at / epochs,
        }

    return [EpochRecord(at, curves(at), 0) for at in range(epochs + 1)]


def outputs(*layers: str) -> dict[str, Histogram]:
    values = np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32)
    return {name: Histogram.of(*values) for name in layers}


def ticks(axis: Axis) -> list[float]:
    low, high = axis.get_view_interval()
    return [tick for tick in axis.get_majorticklocs() if low <= tick <= high]


def test_figures_of_a_run_are_the_same_whatever_style_somebody_likes(liked: dict[str, Any], tmp_path: Path) -> None:
    def written(name: str) -> list[bytes]:
        found = []
        for write in (plots.history(trained(3), "a run"), plots.activations(outputs("linear1", "act1"), "a run")):
            write(tmp_path / name)
            found.append((tmp_path / name).read_bytes())
        return found

    plain = written("plain.png")
    with matplotlib.rc_context(liked):
        assert written("styled.png") == plain
        assert matplotlib.rcParams["font.size"] == liked["font.size"], "and theirs is left to them"


@pytest.mark.parametrize("epochs", [1, 2, 6, 10, 37, 100])
def test_epochs_are_told_in_whole_numbers_and_few_of_them(epochs: int) -> None:
    for ax in drawn(plots.history(trained(epochs), "a run")).axes:
        assert 2 <= len(ticks(ax.xaxis)) <= 6
        assert all(tick == int(tick) for tick in ticks(ax.xaxis))


def test_linear_axes_have_few_ticks() -> None:
    _, accuracy = drawn(plots.history(trained(10), "a run")).axes
    (histogram,) = drawn(plots.activations(outputs("linear1"), "a run")).axes
    for axis in (accuracy.yaxis, histogram.xaxis, histogram.yaxis):
        assert 2 <= len(ticks(axis)) <= 6


@pytest.mark.parametrize("layers", [["linear1"], ["linear1", "act1"], ["linear1", "act1", "linear2", "act2"]])
def test_titles_of_layers_keep_clear_of_the_figures_above_them(layers: list[str]) -> None:
    figure = drawn(plots.activations(outputs(*layers), "a run"))
    boxes = {ax.get_title(): ax.title.get_window_extent() for ax in figure.axes}
    assert list(boxes) == layers
    for ax in figure.axes:
        inside = ax.get_window_extent()
        labels = [label.get_window_extent() for label in (ax.xaxis.label, *ax.get_xticklabels())]
        for title, box in boxes.items():
            assert not box.overlaps(inside), f"{title} lies in {ax.get_title()}"
            assert not any(box.overlaps(label) for label in labels), f"{title} lies on a label of {ax.get_title()}"


@pytest.mark.parametrize("title", ["a run", "network=" + "x" * 80 + "-s0 on mnist_5k, diverged in its last epoch"])
@pytest.mark.parametrize("what", ["history", "activations"])
def test_title_of_a_run_lies_in_the_picture_and_above_all_axes(what: str, title: str) -> None:
    write = plots.history(trained(2), title) if what == "history" else plots.activations(outputs("linear1"), title)
    figure = drawn(write)
    assert "".join(figure.get_suptitle().split()) == "".join(title.split())
    (text,) = figure.texts
    box = text.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height
    below = [*figure.axes, *(ax.title for ax in figure.axes if ax.get_title())]
    assert not any(box.overlaps(part.get_window_extent()) for part in below)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("rise", [1e-5, 1e-3, 0.5])
def test_labels_of_axes_lie_in_the_picture_and_on_nothing_else(scale: float, rise: float) -> None:
    curves = [{"train/loss": scale / (at + 1) ** 2, "train/accuracy": 0.1 + rise * at / 10} for at in range(11)]
    values = scale * np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32)
    histograms = {name: Histogram.of(*values) for name in ("linear1", "act1", "linear2")}
    records = [EpochRecord(at, some, 0) for at, some in enumerate(curves)]
    for figure in (drawn(plots.history(records, "a run")), drawn(plots.activations(histograms, "a run"))):
        labels = [axis.label.get_window_extent() for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
        ticks = [text.get_window_extent() for ax in figure.axes for text in (*ax.get_xticklabels(), *ax.get_yticklabels())]
        for label in labels:
            assert 0 <= label.x0 < label.x1 <= figure.bbox.width
            assert 0 <= label.y0 < label.y1 <= figure.bbox.height
            assert not label.count_overlaps([*ticks, *(ax.get_window_extent() for ax in figure.axes)])
            assert label.count_overlaps(labels) == 1, "itself"
