"""The report of a search: what was found, beside what it is compared with, with the same bytes each time; and ranks by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import matplotlib
import optuna
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

import harness
from harness import findings, landscape, report
from harness.blocks import Blocks
from harness.canvas import Sketch
from harness.cli import main
from harness.config import RunConfig
from harness.ranking import rank
from harness.scene import Scene, TooFew
from harness.search import run_search
from harness.space import Search
from harness.store import Store
from harness.study import Study
from harness.trials import Trials

BASE = {"dataset": "mnist_5k", "epochs": 1, "max_batches": 4, "hidden_dim": 8}
OPTIMIZERS = ["sgd", "adam"]
KINDS = ("contour", "history", "importances-fanova", "importances-ped_anova", "parallel", "slice")
SPACE = {"lr": {"low": 1e-3, "high": 1.0, "log": True}, "batch_size": {"low": 16, "high": 64, "when": {"optimizer": ["adam"]}}}


def search(**settings: Any) -> Search:
    given = {"trials": 4, "batch": 2, "final_seeds": [7, 8], "beside": "fixed", **settings}
    return Search.of(
        name="fair", question="Which <b>optimizer</b>?", seeds=[0], base={**BASE, "validation": 0.2},
        factors={"optimizer": OPTIMIZERS}, search=given, space=SPACE,
    )  # fmt: skip


def fixed(seeds: Sequence[int] = (0, 1, 2), **base: Any) -> Study:
    return Study(
        name="fixed", question="?", design="one_factor_at_a_time", seeds=list(seeds), base={**BASE, **base},
        factors={"optimizer": OPTIMIZERS},
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(place: Path) -> Mapping[str, bytes]:
    """The files of the report that a search wrote at its end, beside a study of fixed settings."""
    harness.run_study(fixed([0, 1]), workers=0, say=lambda line: None)
    run = run_search(search(), workers=0, say=lambda line: None).report_run_id
    folder = Path(Store().client.download_artifacts(run, ""))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_report_of_a_search_written_again_has_the_same_bytes_in_any_style(
    written: Mapping[str, bytes], liked: dict[str, Any]
) -> None:
    with matplotlib.rc_context(liked):
        again = findings.write("fair").files
    assert {name for name in again if again[name] != written[name]} == set()


def test_each_condition_has_the_figures_of_optuna_and_the_page_shows_them_all(written: Mapping[str, bytes]) -> None:
    wanted = {"best-so-far", *(f"optimizer-{optimizer}-{kind}" for optimizer in OPTIMIZERS for kind in KINDS)}
    wanted -= {"optimizer-sgd-contour"}  # it was asked for its lr alone
    assert {name for name in written if name.startswith("plots/")} == {f"plots/{n}.{k}" for n in wanted for k in ("png", "svg")}
    assert all(written[f"plots/{name}.png"].startswith(b"\x89PNG") for name in wanted)
    page = written["report.html"].decode()
    assert page.count("<img") + page.count("<svg") >= len(wanted)
    assert "contour of optimizer=sgd left out: only one parameter has several values; it takes two" in page
    assert "could not be drawn" not in page


def test_page_of_a_search_loads_nothing_and_says_names_as_they_are(written: Mapping[str, bytes]) -> None:
    page = written["report.html"].decode()
    assert "<b>optimizer" not in page
    assert "&lt;b&gt;optimizer" in page
    assert not re.findall(r"(?:src|srcset|@import|url)\s*[=(]\s*[\"']?(?!data:)[a-z]+:", page)


def test_all_trials_are_in_the_table_with_what_the_store_has_of_them(written: Mapping[str, bytes]) -> None:
    table = pd.read_csv(StringIO(written["trials.csv"].decode()))
    (run,) = Store().runs("fair", report="fair")
    kept = json.loads(Path(Store().client.download_artifacts(run.info.run_id, "study.json")).read_text(encoding="utf-8"))
    assert list(table.variant) == [trial["variant"] for trial in kept["trials"]]
    assert [round(value, 12) for value in table.value.dropna()] == [
        round(trial["value"], 12) for trial in kept["trials"] if trial["value"] is not None
    ]
    assert not [name for name in table if "test" in name]


def test_best_so_far_never_gets_worse_and_ends_at_the_best_trial(written: Mapping[str, bytes]) -> None:
    trials = Trials.last("fair")
    for row in trials.search.study.rows:
        mine = trials.of(row)
        so_far, least = [], math.inf
        for value, state in zip(mine.value, mine.state, strict=True):
            least = min(least, value) if state == "complete" else least
            so_far.append(least)
        assert list(mine.best) == so_far
        assert trials.best[row.name].value == so_far[-1]


def test_report_of_a_search_begins_with_the_comparison_on_fresh_seeds(written: Mapping[str, bytes]) -> None:
    said = Trials.last("fair").launched.report.run.data.tags["mlflow.note.content"].split("\n- ")
    assert said[1].startswith("On 2 fresh seeds and the test set, the best settings trained anew: ")
    assert any(sentence.startswith("Best of optimizer=adam on validation, of 4 trials: lr=") for sentence in said)
    assert "harness study best.toml" in written["report.html"].decode()


def test_page_of_a_search_says_how_to_launch_it_again_where_its_name_and_options_do_that(written: Mapping[str, bytes]) -> None:
    assert "<dt>again</dt>" not in written["report.html"].decode()
    assert "- again:" not in written["report.md"].decode()
    launched, given = Trials.last("fair").launched, {"seeds": "0,1", "epochs": "2", "data_dir": "there", "trials": 5}
    for asked, command in (
        (Search.read("tuning"), "harness search tuning --seeds 0,1 --epochs 2 --trials 5"),
        (search(), ""),
    ):
        kept = {"search": json.loads(asked.override(**given).model_dump_json()), "overrides": given}
        assert replace(launched, kept=kept).again("search") == command


def test_status_of_a_search_without_a_file_counts_its_trials(
    written: Mapping[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["status", "fair"])
    assert left.value.code == 0
    assert sorted(line.split() for line in capsys.readouterr().out.splitlines()[2:]) == [
        ["optimizer=adam", "complete", "4"],
        ["optimizer=sgd", "complete", "4"],
    ]


def test_page_of_the_comparison_does_not_say_that_its_name_launches_it(written: Mapping[str, bytes]) -> None:
    page = report.write("fair-best").files["report.html"].decode()
    assert "<dt>again</dt>" not in page
    assert "<code>harness verify --study fair-best</code>" in page


def test_conditions_are_ranked_beside_fixed_settings_or_the_study_of_these_is_asked_for(written: Mapping[str, bytes]) -> None:
    assert "Fixed settings beside tuned ones" in written["report.md"].decode()
    other = replace(Trials.last("fair"), search=search(beside="matrix"))
    final, _ = findings._final(other)
    ranking, unranked, _ = findings._ranking(other, final)
    assert (ranking, unranked) == (
        None, "The store has no study matrix to rank tuned conditions beside; harness study matrix trains it.",
    )  # fmt: skip
    assert unranked in findings._sentences(other, final, ranking, unranked)


def test_figures_that_trials_are_too_few_for_are_left_out_and_said(written: Mapping[str, bytes]) -> None:
    trials = Trials.last("fair")
    one = replace(trials, table=trials.table.groupby("condition").head(1))
    joint, groups, left = landscape.drawings(one)
    drawn = {drawing.name for drawing in [*joint, *(drawing for group in groups.values() for drawing in group)]}
    assert drawn == {"best-so-far", "optimizer-sgd-history", "optimizer-adam-history"}
    assert "slice of optimizer=sgd left out: 1 trial came to an end; it takes two" in left


def test_figures_of_a_search_have_no_title_of_their_own_below_the_pages(written: Mapping[str, bytes]) -> None:
    trials = Trials.last("fair")
    sketches = [landscape.best_so_far(trials)]
    for scene in (Scene.of(trials, row) for row in trials.search.study.rows):
        for draw in landscape.FIGURES.values():
            with suppress(TooFew):
                sketches.append(draw(scene))
    figures = {sketch.name: sketch.figure for sketch in sketches}
    assert {"optimizer-adam-importances-fanova", "optimizer-adam-slice", "optimizer-adam-contour"} <= set(figures)
    for name, figure in figures.items():
        places: tuple[Literal["left", "center", "right"], ...] = ("left", "center", "right")
        titles = [figure.get_suptitle(), *(ax.get_title(place) for ax in figure.axes for place in places)]
        assert not any(titles), f"{name}: {titles}"


@pytest.mark.parametrize("draw", [landscape.slices, landscape.parallel, landscape.contour])
def test_ticks_of_optunas_figures_are_plain_and_lie_on_nothing_else(draw: Callable[[Scene], Sketch]) -> None:
    of: dict[str, BaseDistribution] = {
        "act": CategoricalDistribution(["tanh", "leaky_relu"]),
        "hidden_dim": IntDistribution(30, 160, log=True),  # less than two decades
        "lr": FloatDistribution(1e-4, 1.0, log=True),
    }
    study = optuna.create_study()
    for k in range(8):
        given = {"act": of["act"].choices[k % 2], "hidden_dim": 30 + 16 * k, "lr": 10 ** (-k / 2)}  # type: ignore[attr-defined]
        study.add_trial(create_trial(value=float(1 + k % 3), params=given, distributions=of))
    figure = draw(Scene("", study, tuple(of), "validation loss, nats", wide=True)).figure
    FigureCanvasAgg(figure).draw()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if low <= tick.get_loc() <= high]
        labels = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible() and label.get_text()]
        assert not any(sign in label.get_text() for label in labels for sign in "'\\$")
        boxes = [label.get_window_extent() for label in labels]
        assert all(box.count_overlaps(boxes) == 1 for box in boxes), [label.get_text() for label in labels]
    for text in (*figure.texts, *(axis.label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis))):
        box = text.get_window_extent()
        assert not text.get_text() or -1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1, f"{text} is cut"


# ranks

TOGETHER = {"optimizer=sgd": [1.00, 1.02, 1.01], "optimizer=adam": [0.50, 0.51, 0.53]}
TURNED = {"optimizer=sgd": [0.30, 0.31, 0.32], "optimizer=adam": [0.50, 0.52, 0.51]}
CLOSE = {"optimizer=sgd": [0.30, 0.60, 0.90], "optimizer=adam": [0.50, 0.52, 0.51]}


def blocks(study: Study, numbers: Mapping[str, Sequence[float]]) -> Blocks:
    """Runs of a study that ended with these numbers, one for each seed."""
    rows = [
        {
            "variant": cell.variant.name, "seed": cell.seed, "state": "finished", "run_id": cell.name, "dataset": "mnist_5k",
            "condition": cell.variant.condition, "config_digest": cell.config.digest, "state_digest": cell.config.digest,
            study.metric: numbers[cell.variant.name][study.seeds.index(cell.seed)],
        }
        for cell in study.cells
    ]  # fmt: skip
    return Blocks.of(study, pd.DataFrame(rows))


def tuned(numbers: Mapping[str, Sequence[float]]) -> Blocks:
    asked = search(final_seeds=[7, 8, 9])
    return blocks(asked.final({row.name: {"lr": 0.1, "batch_size": 32} for row in asked.study.rows}), numbers)


def test_conditions_that_change_places_are_named_where_intervals_say_so() -> None:
    found = rank(search(), blocks(fixed(), TOGETHER), 1, tuned(TURNED))
    assert found.sentence == (
        "Against fixed, 1 pair of conditions changes places: optimizer=sgd is better than optimizer=adam once both are tuned."
    )
    table = found.table.set_index(("condition", ""))
    assert table["fixed", "place"].to_dict() == {"optimizer=sgd": 2, "optimizer=adam": 1}
    assert table["tuned", "place"].to_dict() == {"optimizer=sgd": 1, "optimizer=adam": 2}
    assert table["tuned", "mean"].to_dict() == pytest.approx({"optimizer=sgd": 0.31, "optimizer=adam": 0.51})


def test_no_change_of_places_is_claimed_where_means_turn_and_intervals_do_not_say() -> None:
    turned = {name: [value - 0.2 for value in values] if "sgd" in name else values for name, values in CLOSE.items()}
    found = rank(search(), blocks(fixed(), TOGETHER), 1, tuned(turned))
    table = found.table.set_index(("condition", ""))
    assert table["tuned", "place"].to_dict() == {"optimizer=sgd": 1, "optimizer=adam": 2}  # by mean
    assert found.sentence == (
        "Against fixed no two conditions are seen to change places: of 1 pair, 0 have the same order in both, 1 only in fixed, "
        "0 only once tuned."
    )


def test_an_order_that_many_looks_might_have_found_by_chance_is_not_claimed() -> None:
    nearly = {"optimizer=sgd": [0.30, 0.31, 0.32], "optimizer=adam": [0.34, 0.36, 0.38]}
    once, often = (rank(search(), blocks(fixed(), nearly), looks, tuned(nearly)).sentence for looks in (1, 5))
    assert "of 1 pair, 1 has the same order in both" in once
    assert "of 1 pair, 0 have the same order in both" in often


def test_ranks_say_in_what_the_studies_differ_besides() -> None:
    found = rank(search(), blocks(fixed(epochs=5), TOGETHER), 1, tuned(TURNED))
    assert found.note == "Besides, the two differ in epochs 5 and 1; validation 0 and 0.2: a place may change for that too."


def test_study_without_the_conditions_has_no_ranking_and_it_is_said() -> None:
    other = Study(name="fixed", question="?", design="list", seeds=[0, 1, 2], base=BASE, variants=[{"name": "w", "lr": 0.5}])
    found = rank(search(), blocks(other, {"w": [1.0, 2.0, 3.0]}), 1, tuned(TURNED))
    assert len(found.table) == 0
    assert "fewer than two conditions in common" in found.sentence


def test_where_the_base_is_best_there_is_nothing_to_compare_and_its_row_is_whole(written: Mapping[str, bytes]) -> None:
    own = Search.of(
        name="own", question="?", seeds=[0], base={**BASE, "validation": 0.2},
        search={"trials": 2, "sampler": "grid", "final_seeds": [7, 8]},
        space={"lr": {"choices": [RunConfig(**BASE).lr, 1e30]}},
    )  # fmt: skip
    lines: list[str] = []
    assert run_search(own, workers=0, say=lines.append).final is not None
    assert [line for line in lines if line.endswith("  diverged")]
    assert not [line for line in lines if "inf" in line]
    came = findings.write("own")
    assert came.sentences[0].startswith("No setting did better on validation than the base itself")
    (best,) = (line for line in came.files["report.md"].decode().splitlines() if line.startswith("| best |"))
    assert best.startswith("| best | is base | 2 | ")
