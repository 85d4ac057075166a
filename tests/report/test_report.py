"""The report of a run: complete, safe against what a workdir holds, and it works in a browser."""

import json
import os
import re
import shutil
import subprocess

import pytest
from plotly.offline import get_plotlyjs

from drnas_jax import spaces
from drnas_jax.config import from_config_dict, to_dict
from drnas_jax.configs import nasbench201
from drnas_jax.errors import UserError
from drnas_jax.files import append_history, write_json
from drnas_jax.genotype import save, to_cells, to_json
from drnas_jax.report import page as report
from drnas_jax.tables.nasbench201 import Table

SPACE = spaces.find("nasbench201")
EPOCHS, EDGES = 6, len(SPACE.EDGES["cell"])
BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)


def cell(name):
    """One operation on every edge."""
    return SPACE.parse("|N~0|+|N~0|N~1|+|N~0|N~1|N~2|".replace("N", name))


def line(epoch):
    stage = 1 + (epoch > EPOCHS // 2)
    row = [1.0, None if stage == 2 else 0.5, 1.0, 1.0 + epoch, 0.7]
    return {
        "stage": stage,
        "epoch": epoch,
        "train_loss": 2.0,
        "train_accuracy": 0.1 * epoch,
        "valid_loss": 2.1,
        "valid_accuracy": 0.09 * epoch,
        "entropy": 1.6 - 0.1 * epoch,
        "concentration": {"cell": [row] * EDGES},
        "genotype": to_cells(cell("nor_conv_3x3")),
        "images_per_second": 10.0,
    }


@pytest.fixture
def workdir(tmp_path):
    """A workdir of a run, with a table of two cells beside it."""
    return make(tmp_path / "run", tmp_path)


def make(directory, root, seed=0):
    table = root / "table.csv"
    rows = [
        f"{SPACE.describe(cell(name))},{value},{value + 1}"
        for name, value in (("nor_conv_3x3", 93.0), ("none", 10.0))
    ]
    table.write_text("\n".join(["arch_str,cifar10_test_200,cifar100_test_200", *rows]) + "\n")
    config = nasbench201.get_config("smoke")
    config.seed, config.nasbench201.table = seed, str(table)
    config.search.epochs = (EPOCHS // 2, EPOCHS // 2)
    described = {"config": to_dict(from_config_dict(config)), "versions": {"jax": "1"}}
    write_json(directory / "config.json", {**described, "devices": ["<cpu>"]})
    for epoch in range(1, EPOCHS + 1):
        append_history(directory / "search/history.jsonl", line(epoch))
    save(directory / "search/genotype.json", cell("nor_conv_3x3"), {})
    for epoch in range(1, 4):
        trained = {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.2 * epoch}
        append_history(directory / "retrain/history.jsonl", trained)
    result = {
        "genotype": to_json(cell("nor_conv_3x3")),
        "params": 12345, "macs": 67890, "search_seconds": 61.0, "retrain_seconds": 7.0,
        "test_accuracy": 0.8765, "test_top5": 0.99, "seed": seed,
    }  # fmt: skip
    write_json(directory / "result.json", result)
    return directory


@pytest.fixture
def any_cell(monkeypatch):
    """The table knows all cells, without 15,625 lines."""

    def accuracy(self, cell, dataset, split, epochs):
        assert (dataset, split, epochs) == ("cifar10", "test", 200)
        return 10.0 * SPACE.describe(cell).count("nor_conv_3x3")

    monkeypatch.setattr(Table, "accuracy", accuracy)


def sections(page):
    return re.findall("<h2>(.*?)</h2>", page)


def test_a_page_tells_all(workdir, any_cell):
    page = report.write_report([workdir]).read_text()
    assert sections(page) == [
        "What was found", "The cell", "Search", "Exploration", "Mixing weights", "Retraining",
        "Settings",
    ]  # fmt: skip
    for words in ("87.65 %", "12,345", "93.00 %", "1 of 2", "6 of 6 epochs", "nor_conv_3x3~0"):
        assert words in page
    # It needs no network. (The library in it names addresses of maps, which nothing here asks for.)
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page.replace(get_plotlyjs(), ""))


def test_others_are_compared(workdir, any_cell, tmp_path):
    other = make(tmp_path / "other", tmp_path, seed=7)
    page = report.write_report([workdir, other]).read_text()
    table = page[page.index("<h2>Comparison") :]
    rows = re.findall("<tr>(.*?)</tr>", table)[1:3]
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    assert [row[0] for row in cells] == ["run", "other"]
    assert [row[2] for row in cells] == ["0", "7"]
    assert cells[0][5] == "93.00 %"
    # The same config but for the seed.
    assert "<td>run, other</td><td>dirichlet</td><td>2</td><td>93.00 ± 0.00</td>" in table
    assert "<td>87.65 ± 0.00</td>" in table
    assert not (other / "report.html").exists()


def test_several_seeds_stand_for_their_runs(workdir, any_cell, tmp_path):
    described = json.loads((workdir / "config.json").read_text())
    described["config"].update(seed=3, seeds=2)
    write_json(tmp_path / "runs/config.json", described)
    for seed in (3, 4):
        make(tmp_path / f"runs/seed{seed}", tmp_path, seed)
    file = tmp_path / "runs/seed4/config.json"
    file.write_text(file.read_text().replace('"workers": 0', '"workers": 7'))  # of no matter
    assert report.write_report([tmp_path / "runs"]) == tmp_path / "runs/report.html"
    page = (tmp_path / "runs/report.html").read_text()
    assert "<td>seed3, seed4</td><td>dirichlet</td><td>2</td><td>93.00 ± 0.00</td>" in page


def test_the_cell_is_the_one_that_was_evaluated(workdir, any_cell):
    """Not another that was searched here."""
    result = json.loads((workdir / "result.json").read_text())
    write_json(workdir / "result.json", {**result, "genotype": to_json(cell("none"))})
    page = report.write_report([workdir]).read_text()
    assert "10.00 %" in page and "93.00 %" not in page and "none~0" in page


def test_a_table_that_is_gone_is_told_of(workdir, tmp_path, capsys):
    (tmp_path / "table.csv").unlink()
    page = report.write_report([workdir]).read_text()
    assert "true test accuracy" not in page
    assert "table.csv" in capsys.readouterr().err


def test_insight_of_all_runs(workdir, any_cell, tmp_path):
    other = make(tmp_path / "other", tmp_path)
    for directory in (workdir, other):
        file = directory / "search/history.jsonl"
        lines = [json.loads(text) for text in file.read_text().splitlines()]
        file.unlink()
        for one in lines:
            ranked = [
                {"cells": to_cells(cell(name)), "accuracy": value}
                for name, value in (("none", 0.1), ("nor_conv_3x3", 0.5))
            ]
            append_history(file, {**one, "hessian": 0.25 * one["epoch"], "ranked": ranked})
    page = report.write_report([workdir, other]).read_text()
    assert {"Curvature", "Agreement", "Comparison"} <= set(sections(page))
    for title in ("run, dirichlet", "other, dirichlet"):
        assert page.count(f'"name":"{title}"') == 3


def test_what_is_not_there_yet_is_left_out(workdir):
    for name in ("search/genotype.json", "result.json", "retrain/history.jsonl"):
        (workdir / name).unlink()
    (workdir / "search/history.jsonl").unlink()
    page = report.write_report([workdir]).read_text()
    assert sections(page) == ["What was found", "Search", "Settings"]
    assert "No epoch" in page


def test_text_of_a_workdir_is_no_html(workdir, any_cell):
    file = workdir / "config.json"
    described = json.loads(file.read_text())
    described["config"]["data"]["name"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(described))
    page = report.write_report([workdir]).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "<cpu>" not in page


def test_mistakes_are_one_line(workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / "empty")]) == 2
    assert "is no workdir" in capsys.readouterr().err
    assert report.main([]) == report.main(["--help"]) == 2
    assert "usage" in capsys.readouterr().err
    (workdir / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        report.write_report([workdir])


# Runs in the page, and leaves what it finds in its title: the slider is dragged to its begin.
SCRIPT = """
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
  const tell = () => {
    if (weight() !== weight() && tries++ < 100) return setTimeout(tell, 50);  // not drawn yet
    document.title = JSON.stringify({
      plots: document.querySelectorAll('.js-plotly-plot .main-svg').length,
      active: [active, plot.layout.sliders[0].active],
      weights: [before, weight()],
      wide: document.documentElement.scrollWidth - window.innerWidth,
    });
  };
  tell();
}
check();
</script></body>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, pytest.param(1200, marks=pytest.mark.slow)])
def test_in_a_browser(workdir, any_cell, tmp_path, width):
    page = report.write_report([workdir]).read_text()
    (tmp_path / "report.html").write_text(page.replace("</body>", SCRIPT))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'report.html'}",
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    found = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert found["plots"] >= 5
    assert found["active"] == [EPOCHS - 1, 0]
    # An operation that is pruned at the end, and has 0.5 of 5.2 at first.
    assert found["weights"] == [None, pytest.approx(0.5 / 5.2)]
    assert found["wide"] <= 0
    assert "CONSOLE" not in done.stderr
