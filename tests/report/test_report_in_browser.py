"""The report in a browser: its figures are drawn, its slider works, and nothing is too wide."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest
from finished_run import EPOCHS, make

from drnas_jax.report import page as report
from drnas_jax.training.progress import Status

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)


@pytest.fixture
def workdir(tmp_path):
    return make(tmp_path / "run", tmp_path)


# What both pages send to the frame around them.
SEEN = """
<script>
function tooWide() {
  const hidden = '.wide *, .js-plotly-plot *, svg *';  // these scroll or are cut
  return [...document.querySelectorAll('body *')].filter(element => {
    const box = element.getBoundingClientRect();
    return !element.matches(hidden) && box.right > innerWidth + 1;
  }).map(element => element.outerHTML.slice(0, 80));
}
function send(values) {
  const plots = [...document.querySelectorAll('.js-plotly-plot .main-svg')];
  parent.postMessage(JSON.stringify({
    plots: plots.length,
    window: innerWidth,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    elements: [...tooWide(), ...plots.filter(plot => plot.clientWidth > innerWidth)].length,
    which: tooWide(),
    ...values
  }), '*');
}
</script>
"""
# Drags the slider to its beginning.
SLIDER = """
<script>
const drawn = () => document.querySelector('.slider-rail-touch-rect');
function check() {
  if (!drawn()) return setTimeout(check, 50);
  const plot = drawn().closest('.js-plotly-plot'), rail = drawn();
  const weight = () => plot._fullData[0].z[0][1], before = weight();
  const box = rail.getBoundingClientRect(), y = box.top + box.height / 2;
  const at = (kind, x, target) => target.dispatchEvent(new MouseEvent(
    kind, {bubbles: true, cancelable: true, view: window, clientX: x, clientY: y}));
  const active = plot.layout.sliders[0].active;
  at('mousedown', box.left + 1, rail);
  at('mouseup', box.left + 1, document.documentElement);
  let tries = 0;
  const finish = () => {
    if (weight() !== weight() && tries++ < 100) return setTimeout(finish, 50);  // not drawn yet
    send({active: [active, plot.layout.sliders[0].active], weights: [before, weight()]});
  };
  finish();
}
check();
</script></body>
"""
# Waits until all figures are drawn.
DRAWN = """
<script>
function check() {
  const plots = [...document.querySelectorAll('.js-plotly-plot')];
  if (plots.some(plot => !plot.querySelector('.main-svg'))) return setTimeout(check, 50);
  send({});
}
check();
</script></body>
"""
# Chromium opens no window as narrow as a telephone, so the page is in a frame.
FRAME = """<!DOCTYPE html><title></title>
<script>onmessage = event => { document.title = event.data; };</script>
<iframe src="report.html" style="border: 0; width: WIDTHpx; height: 800px"></iframe>
"""


def open_page(page, script, folder, width):
    """Opens a page in a frame of a width, and returns what a script in it has seen."""
    (folder / "report.html").write_text(page.replace("</body>", SEEN + script))
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--window-size=1300,900", "--virtual-time-budget=20000", "--dump-dom",
        f"--user-data-dir={folder / 'profile'}", f"file://{folder / 'frame.html'}",
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    assert "CONSOLE" not in done.stderr
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    assert seen["window"] == width
    assert (seen["wide"], seen["elements"], seen["which"]) == (0, 0, [])
    return seen


WIDTHS = pytest.mark.parametrize("width", [400, pytest.param(1200, marks=pytest.mark.slow)])


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@WIDTHS
def test_a_run_in_a_browser(workdir, tmp_path, width):
    # Would catch a figure that is empty, an element wider than the window, an error of a script,
    # or a slider that does nothing.
    status = Status("search, stage 2/2", 4, 6, seconds=100.0, epoch_seconds=600.0)
    page = report.write_report([workdir], status=status).read_text()
    seen = open_page(page, SLIDER, tmp_path, width)
    assert seen["plots"] >= 8
    assert seen["active"] == [EPOCHS - 1, 0]
    # An operation that is pruned in the end, and has 0.5 of 5.2 in the first epoch.
    assert seen["weights"] == [None, pytest.approx(0.5 / 5.2)]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@WIDTHS
def test_several_runs_in_a_browser(workdir, tmp_path, width):
    # Would catch labels that are wider than the window, and an empty figure.
    long = "a_rather_long_name_of_a_workdir_" * 2
    others = [
        make(
            tmp_path / f"{long}{i}",
            tmp_path,
            **{
                "search__lr": 0.1 * i,
                "search__weight_decay": 0.01,
                "search__momentum": 0.5,
                "search__batch_size": 16,
            },
        )
        for i in (1, 2)
    ]
    page = report.write_report([workdir, *others]).read_text()
    assert open_page(page, DRAWN, tmp_path, width)["plots"] >= 10
