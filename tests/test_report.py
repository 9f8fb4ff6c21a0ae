"""The report: one page that loads nothing, from any state of a study, with the same bytes each time."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import pandas as pd
import pytest
from playwright.sync_api import Browser

import harness
from harness import cli, frames, report
from harness.analysis import analyse
from harness.canvas import Canvas
from harness.curves import curves
from harness.frames import outline
from harness.launched import Launched, options
from harness.page import _escaped
from harness.report import Report
from harness.store import Store
from harness.study import Study
from harness.studyfile import shipped
from harness.tables import chance

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
Scheme = Literal["light", "dark"]
BASE = {"dataset": "mnist_5k", "epochs": 1, "max_batches": 1, "hidden_dim": 8}
SMALL: Any = {"question": "?", "design": "list", "seeds": [0, 1], "variants": [{"name": "a"}, {"name": "b", "lr": 0.1}]}
HOSTILE = 'Which </p><script>alert(1)</script> & <img src="http://example.org/x.png"> | one?'


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """Of a study with a variant that diverges, a run that failed and one that was deleted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        study = Study(
            name="lame",
            question=HOSTILE,
            design="one_factor_at_a_time",
            seeds=[0, 1],
            base={"dataset": "mnist_5k", "epochs": 2, "max_batches": 4, "hidden_dim": 8},
            factors={"act": ["tanh", "relu", "gelu"], "lr": [0.01, 1e30]},
        )
        harness.run_study(study, workers=0, say=lambda line: None)
        store = Store()
        (run,) = store.runs("lame", cell="act=relu-s1")
        store.client.delete_run(run.info.run_id)
        (run,) = store.runs("lame", cell="act=gelu-s0")
        store.client.set_tag(run.info.run_id, "error", "runtimeerror no space left")
        store.client.set_terminated(run.info.run_id, "FAILED")
        yield report.write("lame")


def test_written_twice_it_has_the_same_bytes_whatever_style_of_figures_somebody_likes(
    written: Report, liked: dict[str, Any]
) -> None:
    with matplotlib.rc_context(liked):
        again = report.write("lame")
    assert again.files == written.files
    assert {
        "report.html",
        "report.md",
        "contrasts.csv",
        "plots/curves.svg",
        "plots/verdicts.png",
        "plots/distributions.png",
    } <= set(written.files)
    assert written.lost == ()


def test_figures_are_whole_however_many_cells_are_missing(written: Report) -> None:
    store = Store()
    (run,) = store.runs("lame", cell="act=relu-s0")
    store.client.delete_run(run.info.run_id)
    try:
        again = report.write("lame")
    finally:
        store.client.restore_run(run.info.run_id)
        report.write("lame")
    assert again.lost == ()
    assert again.files.keys() == written.files.keys()


def test_study_of_which_no_run_has_an_epoch_has_a_report_and_typed_frames(written: Report) -> None:
    def stop(line: str) -> None:
        if line.startswith("study"):  # its runs are made
            raise KeyboardInterrupt

    study = Study(**SMALL, name="stopped", base=BASE)
    with pytest.raises(KeyboardInterrupt):
        harness.run_study(study, workers=0, say=stop)
    assert "plots/verdicts.svg" not in report.write("stopped").files
    nothing = harness.history("stopped")
    some = harness.history("lame")
    assert len(nothing) == 0
    assert dict(nothing.dtypes) == {name: some[name].dtype for name in nothing}


def test_screen_and_curves_of_a_study_on_validation_show_validation(written: Report) -> None:
    study = Study(**SMALL, name="held", metric="final/val_loss", base={**BASE, "validation": 0.2})
    result = harness.run_study(study, workers=0, say=lambda line: None)
    assert list(outline(result.table))[2:] == [f"val_loss {what}" for what in ("mean", "std", "min", "max")]
    assert frames.text(outline(result.table), "table").split()[2:6] == ["val_loss", "std", "min", "max"]
    analysis = analyse(study, harness.runs("held"), harness.history("held"))
    drawing = curves(Canvas.of(analysis))
    assert drawing is not None
    assert [ax.get_title() for ax in drawing.figure.axes] == [
        f"{part} {what}" for what in ("loss", "accuracy") for part in ("train", "validation")
    ]
    assert "validation in eval mode" in drawing.caption


def test_report_says_with_how_many_seeds_it_was_launched_before(written: Report) -> None:
    for seeds in ([0], [0, 1], [0, 1, 2]):
        study = Study(**{**SMALL, "seeds": seeds}, name="grows", base=BASE)
        harness.run_study(study, workers=0, say=lambda line: None)
    text = report.write("grows").files["report.md"].decode()
    assert "It was launched before with 1, 2 seeds" in text
    harness.run_study(study.override(seeds=[0, 1]), workers=0, say=lambda line: None)
    assert "It was launched before with 1 seed, and" in report.write("grows").files["report.md"].decode()
    harness.run_study(study.override(seeds=[0, 1, 2, 3]), workers=0, say=lambda line: None)
    assert "It was launched before with 1, 2, 3 seeds" in report.write("grows").files["report.md"].decode()


def test_page_loads_nothing_and_runs_nothing_that_a_name_brings(written: Report) -> None:
    page = written.files["report.html"].decode()
    assert page == Path(written.place).read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|srcset|data)="(\w+:)', page)) == {"data:"}
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\(|@import", page)
    assert "<script" not in written.files["report.md"].decode()
    assert len(page) < 3_000_000


def test_cells_without_a_number_are_named(written: Report) -> None:
    for name in ("report.html", "report.md"):
        text = written.files[name].decode().replace("\\_", "_")
        assert re.search(r"lr=1e[+]?30-s0: diverged, in epoch \d", text), name
        assert "act=relu-s1: missing" in text, name
        assert "act=gelu-s0: failed, runtimeerror no space left" in text, name
    assert all(sentence in written.files["report.html"].decode() for sentence in written.sentences if "'" not in sentence)


def test_failed_run_leaves_its_variant_without_a_verdict(written: Report) -> None:
    page = written.files["report.html"].decode()
    assert "act=gelu is undecided against act=tanh: 1 of 2 runs of act=gelu failed" in page
    assert "1 of 2 runs of act=gelu failed: its mean is over the rest, so it gets no verdict." in page
    (contrast,) = (line for line in written.files["contrasts.csv"].decode().splitlines() if line.startswith("act=gelu,"))
    assert ",undecided," in contrast


def test_rates_of_divergence_have_exact_intervals(written: Report) -> None:
    page = written.files["report.html"].decode()
    assert "<td>2 of 2 (0.1581 to 1)</td>" in page  # 0.025 ** (1 / 2)
    assert "<td>0 of 2 (0 to 0.8419)</td>" in page


def test_p_values_beyond_what_tests_bear_are_bounds() -> None:
    assert [chance(p) for p in (math.nan, 0.0, 1e-17, 0.0001, 0.25)] == ["", "< 0.0001", "< 0.0001", "0.0001", "0.25"]


def test_options_are_said_as_a_command_line_has_them() -> None:
    assert options({"seeds": "0..9", "batch_size": "64", "network": "my net.json"}) == (
        " --seeds 0..9 --batch-size 64 --network 'my net.json'"
    )


def left_with(*command: str) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(command))
    return left.value.code


def again(name: str) -> str:
    """The command in the row `again` of a study's page; empty where it has none. The row `checked` is always there."""
    (run,) = Store().runs(name, report=name)
    page, plain = (
        Path(Store().client.download_artifacts(run.info.run_id, f"report.{kind}")).read_text(encoding="utf-8")
        for kind in ("html", "md")
    )
    assert f"<dt>checked</dt><dd>bit for bit by <code>harness verify --study {name}</code></dd>" in page
    assert f"- checked: `harness verify --study {name}`\n" in plain
    found = re.findall(r"<dt>again</dt><dd><code>(.*)</code></dd>", page)
    assert re.findall(r"- again: `(.*)`", plain) == found
    return "".join(found)


def test_options_that_say_what_a_study_was_launch_it_again(written: Report) -> None:
    """From what a launch keeps; the next test launches."""
    given = {"seeds": "0", "epochs": "1"}
    last = Launched.last("lame")
    matrix = replace(last, study=Study.read("matrix").override(**given), kept={**last.kept, "overrides": given})
    assert last.again("study") == ""
    assert matrix.again("study") == "harness study matrix --seeds 0 --epochs 1 --dataset mnist_5k", "which auto became"
    assert replace(matrix, looks=2).again("study") == ""
    assert replace(matrix, study=Study.read("matrix")).again("study") == "", "its options are not these"


@pytest.mark.slow
def test_page_says_how_to_launch_it_again_where_its_name_and_options_do_that(
    written: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again("lame") == ""  # from Python: no study of this name is to be found
    given = "--seeds 0 --epochs 1 --hidden-dim 4 --max-batches 1 --dataset mnist_5k"
    small = (*given.split(), "--workers", "0")
    assert left_with("study", "matrix", *small) == 0
    assert again("matrix") == f"harness study matrix {given}"
    capsys.readouterr()
    assert left_with(*shlex.split(again("matrix"))[1:], "--dry-run") == 0
    assert "matrix: none of 10 cells to train" in capsys.readouterr().out
    last = Launched.last("matrix")
    portable = replace(last, kept={**last.kept, "numerics": "portable"})
    assert portable.again("study") == f"harness study matrix {given} --numerics portable"
    assert last.kept["numerics"] == "native"
    assert left_with("study", "matrix", *small, "--until-decided", "--max-seeds", "2") == 0
    assert again("matrix") == ""  # with two seeds its intervals would be those of one look
    mine = (shipped() / "matrix.toml").read_text(encoding="utf-8").replace("matters = 0.02", "matters = 0.5")
    (tmp_path / "matrix.toml").write_text(mine, encoding="utf-8")
    assert left_with("study", str(tmp_path / "matrix.toml"), *small) == 0
    assert again("matrix") == ""  # by this name another study is found


def test_report_writes_its_files_into_a_folder_too(written: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "out"
    assert left_with("report", "lame", "--output", str(folder)) == 0
    assert {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } == written.files
    assert f"report   {written.place}" in capsys.readouterr().out


def test_report_that_could_not_be_written_into_a_folder_is_refused_before_it_is_made(
    written: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    (page := Path(written.place)).touch()
    before = page.stat().st_mtime_ns
    assert left_with("report", "lame", "--output", str(tmp_path / "taken" / "below")) == 2
    assert "taken is a file; allowed: a folder" in capsys.readouterr().err
    assert page.stat().st_mtime_ns == before


def test_a_study_is_verified_by_its_file_too(written: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (shipped() / "matrix.toml").read_text(encoding="utf-8").replace('name = "matrix"', 'name = "nobody"')
    (tmp_path / "file.toml").write_text(text, encoding="utf-8")
    assert left_with("verify", "--study", str(tmp_path / "file.toml")) == 2
    assert "study nobody has no finished run" in capsys.readouterr().err


def test_report_does_not_write_over_a_file(written: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (taken := tmp_path / "taken").write_text("mine", encoding="utf-8")
    assert left_with("report", "lame", "--output", str(taken)) == 2
    assert "is a file; allowed: a folder" in capsys.readouterr().err
    assert taken.read_text(encoding="utf-8") == "mine"


def test_description_of_the_report_run_begins_with_the_verdicts(written: Report) -> None:
    (run,) = Store().runs("lame", report="lame")
    assert run.data.tags["mlflow.note.content"].startswith(f"**{written.sentences[0]}**\n")


def test_description_too_long_for_mlflow_loses_its_table_then_conclusions(written: Report) -> None:
    runs = pd.DataFrame({"state": [], "variant": [], "seed": [], "reason": []})
    for conclusions, last in ((50, "- 50 " + "x" * 60), (500, "- ")):
        said = ["Of many variants.", *(f"{at + 1} {'x' * 60}" for at in range(conclusions))]
        table = pd.concat([written.table] * 50)
        note = report._note(written.study, runs, table, "", said)
        assert note.startswith("**Of many variants.**")
        assert "`report.html` among the artifacts" in note
        assert note.splitlines()[-1].startswith(last)
        assert len(note) <= report.LONGEST


def test_markdown_escapes_each_sign_once() -> None:
    assert _escaped("a <= b\n| #1") == "a &#60;= b &#124; \\#1"


SECTIONS = [
    *("Variants", "Final values, and differences to the base", "Curves over epochs", "Health of hidden layers"),
    *("Weights and activations, before and after training", "What other tests say", "Stability of training"),
    *("What cannot be said", "How it was run"),
]
CUT = """() => [...document.querySelectorAll('h1, h2, p, li, dd, .box, .card')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 40))"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_whole_on_a_desk_and_a_phone_and_asks_nobody(written: Report, chromium: Browser, scheme: Scheme) -> None:
    said: list[str] = []
    asked: list[str] = []
    page = chromium.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{written.place}")
    assert page.get_by_role("heading", level=2).all_inner_texts() == SECTIONS
    figures = sorted(Path(name).stem for name in written.files if name.endswith(".svg"))
    assert sorted(page.evaluate("[...document.querySelectorAll('figure:has(img) h2')].map(h => h.id)")) == figures
    assert page.evaluate(CUT) == []
    # a phone; A4 less margins of 1 cm, at 96 dots an inch; a phone that prints
    for medium, width in (("screen", 1280), ("screen", 390), ("print", 718), ("print", 390)):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(media=medium, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), medium
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)"), medium
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", f"file://{written.place}"))] == []
