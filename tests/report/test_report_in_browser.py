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


# Runs in the page: drags the slider to its beginning and tells the frame around what it sees.
SCRIPT = """
<script>
const drawn = () => document.querySelector('.slider-rail-touch-rect');
function tooWide() {
  const hidden = '.wide *, .js-plotly-plot *, svg *';  // these scroll or are cut
  return [...document.querySelectorAll('body *')].filter(element => {
    const box = element.getBoundingClientRect();
    return !element.matches(hidden) && box.right > innerWidth + 1;
  }).map(element => element.outerHTML.slice(0, 80));
}
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
    const plots = [...document.querySelectorAll('.js-plotly-plot .main-svg')];
    parent.postMessage(JSON.stringify({
      plots: plots.length,
      active: [active, plot.layout.sliders[0].active],
      weights: [before, weight()],
      window: innerWidth,
      wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      elements: [...tooWide(), ...plots.filter(plot => plot.clientWidth > innerWidth)].length,
      which: tooWide(),
    }), '*');
  };
  finish();
}
check();
</script></body>
"""
# Chromium opens no window as narrow as a telephone, so the page is in a frame.
FRAME = """<!DOCTYPE html><title></title>
<script>onmessage = event => { document.title = event.data; };</script>
<iframe src="report.html" style="border: 0; width: WIDTHpx; height: 800px"></iframe>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [400, pytest.param(1200, marks=pytest.mark.slow)])
def test_in_a_browser(workdir, tmp_path, width):
    # Would catch a figure that is empty, an element wider than the window, an error of a script,
    # or a slider that does nothing.
    other = make(tmp_path / ("a_rather_long_name_of_a_workdir_" * 2), tmp_path, seed=7)
    status = Status("search, stage 2/2", 4, 6, seconds=100.0, epoch_seconds=600.0)
    page = report.write_report([workdir, other], status=status).read_text()
    (tmp_path / "report.html").write_text(page.replace("</body>", SCRIPT))
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--window-size=1300,900", "--virtual-time-budget=20000", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'frame.html'}",
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    assert seen["plots"] >= 8
    assert seen["active"] == [EPOCHS - 1, 0]
    # An operation that is pruned in the end, and has 0.5 of 5.2 in the first epoch.
    assert seen["weights"] == [None, pytest.approx(0.5 / 5.2)]
    assert seen["window"] == width
    assert (seen["wide"], seen["elements"], seen["which"]) == (0, 0, [])
    assert "CONSOLE" not in done.stderr
