"""`python docs/screenshots/take.py`: the pictures of this folder, from the store's last launch of `matrix`; needs Chromium."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from harness.chart import UI, shared
from harness.launched import Launched

HERE = Path(__file__).parent
DRAWN = "[...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.data && plot.data.length).length >= 2"


def serve(store: str, port: int) -> subprocess.Popen[bytes]:
    """MLflow's server on this machine, once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return server
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server has ended")


def shoot(page: Page, name: str, width: int, height: int, address: str, sign: str, framed: bool = False) -> None:
    """A picture of an address once it shows a sign, which is a text of the page or of a frame in it."""
    page.set_viewport_size({"width": width, "height": height})
    page.goto(address)
    where = page.frame_locator("iframe") if framed else page
    expect(where.get_by_text(sign).first).to_be_visible(timeout=60_000)
    if page.get_by_text("MLflow Assistant").count():  # a panel that covers a quarter of each page
        page.mouse.click(width - 36, 36)
    if name == "chart":
        page.wait_for_function(DRAWN, timeout=60_000)
    page.get_by_text("Path: file:").evaluate_all("all => all.forEach(one => one.style.visibility = 'hidden')")  # this machine's
    page.wait_for_timeout(4000)  # what moves comes to rest
    page.screenshot(path=HERE / f"{name}.png")


def main() -> None:
    """Take them all."""
    launched = Launched.last("matrix")
    experiment = launched.report.run.info.experiment_id
    (run,) = launched.store.runs("matrix", cell="norm=layernorm-s0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(launched.store.uri, port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            edition = launched.report.run.data.tags["edition"]
            chart = shared(experiment, f"matrix-{edition}").replace(UI, f"http://127.0.0.1:{port}")
            runs = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs"
            shoot(page, "chart", 1500, 800, chart, "30 matching runs")
            shoot(page, "run", 1300, 1500, f"{runs}/{run.info.run_id}", "final/test_loss")
            shoot(page, "viewer", 1300, 900, f"{runs}/{launched.report.id}/artifacts/report.html", "Variants", framed=True)
            shoot(page, "report", 1200, 1250, f"file://{launched.report.place('report.html')}", "Variants")
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
