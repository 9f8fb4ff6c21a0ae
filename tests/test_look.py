"""What people meet in MLflow's UI after a study: a real server on this machine, and Chromium."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import forks
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import Page, expect
from servers import served

from harness import chart

pytestmark = pytest.mark.browser
expect.set_options(timeout=120_000)

STUDY = """
name = "looks"
question = "Does a norm help?"
design = "one_factor_at_a_time"
seeds = [0, 1, 2]
[base]
dataset = "mnist_5k"
epochs = 3
max_batches = 20
[factors]
norm = ["none", "layernorm"]
"""


@dataclass(frozen=True)
class Site:
    """A study in a store, and the server that shows it."""

    address: str
    out: str  # what `harness study` said
    runs: dict[str, Run]  # by name

    @property
    def link(self) -> str:
        """The chart link that was printed, led to this server's port."""
        found = re.search(rf"{re.escape(chart.UI)}(/#\S+)", self.out)
        assert found, self.out
        return self.address + found[1]

    def page(self, run: str, tab: str = "") -> str:
        """Where a run's page is."""
        info = self.runs[run].info
        return f"{self.address}/#/experiments/{info.experiment_id}/runs/{info.run_id}{tab}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "looks.toml").write_text(STUDY, encoding="utf-8")
    store = f"sqlite:///{folder}/mlflow.db"
    env = {**os.environ, "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-m", "harness", "study", "looks.toml", "--workers", "0", "--log-models"]
    done = forks.run(command, cwd=folder, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("looks")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    with served(folder, folder / "mlflow.db") as server:
        yield Site(server.uri, done.stdout, runs)


DRAWN = """() => Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.data).map(plot => [
    (plot.data.find(trace => trace.metricKey) || {}).metricKey,
    {
        scale: plot.layout.yaxis.type,
        bands: plot.data.filter(trace => trace.fill).map(trace => Array.from(trace.y)),
        means: plot.data.filter(trace => trace.mode === 'lines+markers').map(trace => Array.from(trace.y)),
    },
]))"""


def test_printed_link_opens_mean_curves_with_bands_of_variants(site: Site, page: Page) -> None:
    page.goto(site.link)
    expect(page.get_by_text("Group by: variant")).to_be_visible()
    expect(page.get_by_text("matching runs").first).to_be_visible()
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    for place, name in enumerate(("test/loss", "test/accuracy", "train/loss", "train/accuracy")):
        expect(cards.nth(place)).to_contain_text(name)
    expect(page.get_by_text("No charts")).to_have_count(0)
    whole = f"() => (drawn => drawn && drawn.bands.length === 2 && drawn)(({DRAWN})()['test/loss'])"
    drawn = page.wait_for_function(whole).json_value()
    assert drawn["scale"] == "log"
    for variant in ("norm=none", "norm=layernorm"):
        last = [run.data.metrics["test/loss"] for name, run in site.runs.items() if name.startswith(f"{variant}-s")]
        assert len(last) == 3
        assert any(curve[-1] == pytest.approx(sum(last) / 3) for curve in drawn["means"]), variant
        ends = [sorted((band[0], band[-1])) for band in drawn["bands"]]
        assert any(end == pytest.approx([min(last), max(last)]) for end in ends), variant


def test_variants_are_folded_groups_of_their_seeds(site: Site, page: Page) -> None:
    page.goto(site.link)
    for variant in ("norm=none", "norm=layernorm"):
        expect(page.get_by_text(f"Group: {variant}")).to_be_visible()
    expect(page.get_by_text("norm=none-s0")).to_have_count(0)


def test_page_of_a_run_shows_description_and_metrics(site: Site, page: Page) -> None:
    page.goto(site.page("norm=layernorm-s1"))
    loss = site.runs["norm=layernorm-s1"].data.metrics["final/test_loss"]
    expect(page.get_by_role("heading", name="norm=layernorm-s1")).to_be_visible()
    expect(page.get_by_text(f"test loss {loss:.4f} nats")).to_be_visible()
    expect(page.get_by_text("final/test_loss", exact=True)).to_be_visible()
    expect(page.get_by_text(str(loss)).first).to_be_visible()


@pytest.mark.parametrize("plot", ["history", "activations"])
def test_plots_of_a_run_are_drawn_in_the_artifact_viewer(site: Site, page: Page, plot: str) -> None:
    page.goto(site.page("norm=none-s0", f"/artifacts/plots/{plot}.png"))
    image = page.get_by_role("img", name=f"plots/{plot}.png").first
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 900


def test_model_of_a_run_is_an_mlflow_model(site: Site, page: Page) -> None:
    page.goto(site.page("norm=none-s0", "/artifacts/model"))
    expect(page.get_by_text("MLmodel", exact=True).first).to_be_visible()


def test_report_run_shows_question_and_table(site: Site, page: Page) -> None:
    page.goto(site.page("looks-report"))
    expect(page.get_by_text("Of 1 variant beside norm=none:")).to_be_visible()
    expect(page.get_by_text("Does a norm help?")).to_be_visible()
    page.goto(site.page("looks-report", "/artifacts/summary.csv"))
    expect(page.get_by_text("test_loss_mean")).to_be_visible()
    expect(page.get_by_text("norm=layernorm", exact=True)).to_be_visible()


def test_report_is_a_page_in_the_artifact_viewer(site: Site, page: Page) -> None:
    page.goto(site.page("looks-report", "/artifacts/report.html"))
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name="looks", exact=True)).to_be_visible()
    expect(report.get_by_text("Does a norm help?")).to_be_visible()
    image = report.get_by_role("img").first
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
