"""The report of a run: complete, safe against any content of a workdir, usable in a browser."""

import json
import os
import re
import shutil
import subprocess

import pytest
from finished_run import EPOCHS, cell, make
from plotly.offline import get_plotlyjs

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.files import append_history, write_json
from drnas_jax.genotype import from_cells, save, to_cells, to_json
from drnas_jax.report import page as report

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)


@pytest.fixture
def workdir(tmp_path):
    return make(tmp_path / "run", tmp_path)


def sections(page):
    return re.findall("<h2>(.*?)</h2>", page)


def rows_of(page):
    """The text of the cells of all table rows."""
    return [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page)]


def test_a_page_shows_everything(workdir):
    # Would catch a section or a number that is lost, and a page that needs a network.
    page = report.write_report([workdir]).read_text()
    assert sections(page) == [
        "Result", "Genotype", "Search", "Exploration", "Mixing weights", "Retraining", "Settings",
    ]  # fmt: skip
    for words in ("87.65 %", "12,345", "6 of 6 epochs", "nor_conv_3x3~0"):
        assert words in page
    # The library in the page mentions addresses of maps, which nothing here asks for.
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page.replace(get_plotlyjs(), ""))


def test_a_cost_is_shown_with_its_target(tmp_path):
    # Would catch a page that does not say what the network costs, or how the search came there.
    changes = dict(cost__name="macs", cost__target=7e4)
    workdir = make(tmp_path / "run", tmp_path, **changes)
    plain = report.write_report([workdir]).read_text()
    assert "largest cost" not in plain and '"expected cost"' not in plain
    cost = {"name": "macs", "unit": "multiply-adds", "exact": 67890, "target": 7e4}
    save(workdir / "search/genotype.json", cell("nor_conv_3x3"), {"cost": cost})
    lines = (workdir / "search/history.jsonl").read_text().splitlines()
    (workdir / "search/history.jsonl").unlink()
    for line in lines:
        append_history(workdir / "search/history.jsonl", {**json.loads(line), "expected_cost": 8e4})
    page = report.write_report([workdir]).read_text()
    assert ["cost, multiply-adds", "67,890"] in rows_of(page)
    assert ["largest cost, multiply-adds", "70,000"] in rows_of(page)
    assert page.count('"name":"target"') == page.count('"name":"expected cost"') == 1
    save(workdir / "search/genotype.json", cell("nor_conv_3x3"), {"cost": {**cost, "exact": "few"}})
    with pytest.raises(UserError, match="exact is 'few'"):
        report.write_report([workdir])


def test_the_result_is_shown_beside_random_cells_and_why_the_search_stopped(tmp_path):
    # Would catch ties that count as wins, and a search that seems to have run to its end.
    workdir = make(tmp_path / "run", tmp_path)
    plain = rows_of(report.write_report([workdir]).read_text())
    assert not {"result in the supernet", "search stopped early"} & {row[0] for row in plain if row}
    compared = {"images": 1280, "accuracy": 0.6, "random": [0.1, 0.6, 0.7, 0.2]}
    file, origin = workdir / "search/genotype.json", {"stopped": "it has <seen> enough"}
    save(file, cell("nor_conv_3x3"), {**origin, "compared": compared})
    rows = rows_of(report.write_report([workdir]).read_text())
    words = "better than 2 of 4 random cells (mean 40.00 %, best 70.00 %)"
    assert ["result in the supernet", f"60.00 % on 1,280 validation images, {words}"] in rows
    assert ["search stopped early", "it has &lt;seen&gt; enough"] in rows
    for wrong in ({**compared, "random": []}, {**compared, "random": ["x"]}, {"images": 1}):
        save(file, cell("nor_conv_3x3"), {"compared": wrong})
        with pytest.raises(UserError, match="compared: (random|accuracy) is"):
            report.write_report([workdir])


def test_titles_and_columns_come_from_the_table(workdir, tmp_path):
    # Would catch a report that knows one benchmark by name.
    other = make(tmp_path / "other", tmp_path, seed=7)
    page = report.write_report([workdir, other]).read_text()
    for row in (
        ["true test accuracy, images", "90.00 %"],
        ["true test accuracy, sounds", "7.00 %"],
        ["rank in The table of convolutions", "1 of 7"],
        ["run, other", "dirichlet", "2", "90.00 ± 0.00", "7.00 ± 0.00", "87.65 ± 0.00"],
    ):
        assert row in rows_of(page)
    assert "on images (The table of convolutions) of 100 genotypes" in page
    assert "CIFAR" not in page.replace(get_plotlyjs(), "")


def test_nasbench201_has_its_table(tmp_path):
    # Would catch a bundled table that is not found by the name of the space.
    describe = spaces.create("nasbench201").describe
    rows = {"nor_conv_3x3": 93.0, "none": 10.0}
    lines = [f"{describe(cell(name))},{value},{value + 1}" for name, value in rows.items()]
    file = tmp_path / "table.csv"
    file.write_text("\n".join(["arch_str,cifar10_test_200,cifar100_test_200", *lines]) + "\n")
    workdir = make(tmp_path / "run", tmp_path, table__name="", table__file=str(file))
    page = report.write_report([workdir]).read_text()
    assert ["true test accuracy, cifar10", "93.00 %"] in rows_of(page)
    assert ["true test accuracy, cifar100", "94.00 %"] in rows_of(page)
    assert ["rank in NAS-Bench-201", "1 of 2"] in rows_of(page)
    # Most of the drawn cells are not among these two.
    assert "Exploration" not in sections(page)


def test_a_run_without_a_table_has_a_report(tmp_path):
    # Would catch a section that takes a table for granted.
    workdir = make(tmp_path / "run", tmp_path, table__name="")
    page = report.write_report([workdir, workdir]).read_text()
    assert {"Genotype", "Mixing weights", "Comparison"} <= set(sections(page))
    assert "true test accuracy" not in page and "Exploration" not in sections(page)


def test_a_run_in_a_space_of_the_users_own_has_a_report(tmp_path):
    # Would catch a look-up by the short name in the genotype, and names of bundled cell types.
    (tmp_path / "vit.py").write_text(
        "from drnas_jax.spaces.base import Cell, Edge, Space\n"
        "P = ('conv', 'attention_4')\n"
        "class Vit(Space):\n"
        "    name = 'vit'\n"
        "    cells = {'block_1': Cell((Edge(1, 0, P),)),\n"
        "             'block_2': Cell((Edge(1, 0, P), Edge(2, 1, P)))}\n"
        "    def describe(self, genotype):\n"
        "        return f'described {genotype.space}'\n"
        "create = Vit\n"
    )
    space = str(tmp_path / "vit.py")
    workdir = make(tmp_path / "run", tmp_path, space=space, table__name="")
    cells = {"block_1": [[["conv", 0]]], "block_2": [[["conv", 0]], [["attention_4", 1]]]}
    genotype = from_cells("vit", cells, "here")
    save(workdir / "search/genotype.json", genotype, {})
    result = json.loads((workdir / "result.json").read_text())
    write_json(workdir / "result.json", {**result, "genotype": to_json(genotype)})
    (workdir / "search/history.jsonl").unlink()
    scores = {"block_1": [[1.0, 2.0]], "block_2": [[1.0, None], [None, 2.0]]}
    values = {"epoch": 1, "concentration": scores, "genotype": cells}
    append_history(workdir / "search/history.jsonl", values)
    page = report.write_report([workdir]).read_text()
    assert "described vit" in page
    assert {"block_1", "block_2"} <= set(re.findall("<h3>(.*?)</h3>", page))


def test_runs_are_compared(workdir, tmp_path):
    # Would catch rows that mix two runs, and a report that writes to the other workdir.
    other = make(tmp_path / "other", tmp_path, seed=7)
    page = report.write_report([workdir, other]).read_text()
    rows = rows_of(page[page.index("<h2>Comparison") :])[1:3]
    assert [row[0] for row in rows] == ["run", "other"]
    assert [row[2] for row in rows] == ["0", "7"]
    assert rows[0][5] == "90.00 %"
    assert not (other / "report.html").exists()


def test_the_workdir_of_several_seeds_stands_for_its_runs(workdir, tmp_path):
    # Would catch runs that count as different because of a field that changes no result.
    described = json.loads((workdir / "config.json").read_text())
    described["config"].update(seed=3, seeds=2)
    write_json(tmp_path / "runs/config.json", described)
    make(tmp_path / "runs/seed3", tmp_path, 3)
    make(tmp_path / "runs/seed4", tmp_path, 4, data__workers=7)
    assert report.write_report([tmp_path / "runs"]) == tmp_path / "runs/report.html"
    page = (tmp_path / "runs/report.html").read_text()
    assert ["seed3, seed4", "dirichlet", "2", "90.00 ± 0.00", "7.00 ± 0.00", "87.65 ± 0.00"] in (
        rows_of(page)
    )


def test_the_genotype_is_the_evaluated_one(workdir):
    # Would catch the accuracy of one genotype beside the picture of another.
    result = json.loads((workdir / "result.json").read_text())
    write_json(workdir / "result.json", {**result, "genotype": to_json(cell("none"))})
    page = report.write_report([workdir]).read_text()
    assert ["true test accuracy, images", "0.00 %"] in rows_of(page)
    assert "none~0" in page


def test_a_table_that_is_gone_is_reported(tmp_path, capsys):
    # Would catch a report that fails, or silently lacks what the config asks for.
    workdir = make(tmp_path / "run", tmp_path, table__name="", table__file="gone.csv")
    page = report.write_report([workdir]).read_text()
    assert "true test accuracy" not in page
    assert "gone.csv" in capsys.readouterr().err


def test_diagnostics_of_all_runs_are_shown(workdir, tmp_path):
    # Would catch figures that show the first run only.
    other = make(tmp_path / "other", tmp_path)
    for directory in (workdir, other):
        file = directory / "search/history.jsonl"
        lines = [json.loads(text) for text in file.read_text().splitlines()]
        file.unlink()
        for values in lines:
            ranked = [
                {"cells": to_cells(cell(name)), "accuracy": accuracy}
                for name, accuracy in (("none", 0.1), ("nor_conv_3x3", 0.5))
            ]
            append_history(file, {**values, "hessian": 0.25 * values["epoch"], "ranked": ranked})
    page = report.write_report([workdir, other]).read_text()
    assert {"Curvature", "Agreement", "Comparison"} <= set(sections(page))
    for title in ("run, dirichlet", "other, dirichlet"):
        assert page.count(f'"name":"{title}"') == 3


def test_a_run_that_has_just_begun_has_a_report(workdir):
    # Would catch a section that needs a file which a later phase writes.
    for name in ("search/genotype.json", "result.json", "retrain/history.jsonl"):
        (workdir / name).unlink()
    (workdir / "search/history.jsonl").unlink()
    page = report.write_report([workdir]).read_text()
    assert sections(page) == ["Result", "Search", "Settings"]


def test_text_from_a_workdir_is_escaped(workdir):
    # Would catch a config that runs a script in the reader's browser.
    file = workdir / "config.json"
    described = json.loads(file.read_text())
    described["config"]["data"]["name"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(described))
    page = report.write_report([workdir]).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "<cpu>" not in page


def test_mistakes_are_one_line(workdir, tmp_path, capsys):
    # Would catch a traceback for a wrong path or an unknown flag.
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / "empty")]) == 2
    assert "is not a workdir" in capsys.readouterr().err
    assert report.main([]) == report.main(["--help"]) == 2
    assert "usage" in capsys.readouterr().err
    (workdir / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        report.write_report([workdir])


@pytest.mark.parametrize(
    ("file", "change", "field"),
    [
        ("result.json", {"test_top5": None}, "test_top5"),
        ("result.json", {"params": "many"}, "params"),
        ("result.json", {"genotype": None}, "genotype"),
        ("config.json", {"devices": 3}, "devices"),
        ("config.json", {"versions": []}, "versions"),
        ("config.json", {"config": {}}, "config"),
    ],
)
def test_a_wrong_field_is_named(workdir, file, change, field):
    # Would catch an error that does not say what to repair.
    values = json.loads((workdir / file).read_text())
    write_json(workdir / file, {**values, **change})
    with pytest.raises(UserError) as caught:
        report.write_report([workdir])
    assert str(workdir / file) in str(caught.value) and field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bug_is_not_blamed_on_the_workdir(workdir, monkeypatch):
    # Would catch a handler that turns every exception into a message about damaged files.
    def broken(history):
        raise KeyError("bug")

    monkeypatch.setattr(report.figures, "curves", broken)
    with pytest.raises(KeyError, match="bug"):
        report.write_report([workdir])


# Runs in the page: drags the slider to its beginning and writes what it sees to the title.
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
  const finish = () => {
    if (weight() !== weight() && tries++ < 100) return setTimeout(finish, 50);  // not drawn yet
    document.title = JSON.stringify({
      plots: document.querySelectorAll('.js-plotly-plot .main-svg').length,
      active: [active, plot.layout.sliders[0].active],
      weights: [before, weight()],
      wide: document.documentElement.scrollWidth - window.innerWidth,
    });
  };
  finish();
}
check();
</script></body>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, pytest.param(1200, marks=pytest.mark.slow)])
def test_in_a_browser(workdir, tmp_path, width):
    # Would catch a figure that is empty, wider than the screen, or whose slider does nothing.
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
    seen = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert seen["plots"] >= 5
    assert seen["active"] == [EPOCHS - 1, 0]
    # An operation that is pruned in the end, and has 0.5 of 5.2 in the first epoch.
    assert seen["weights"] == [None, pytest.approx(0.5 / 5.2)]
    assert seen["wide"] <= 0
    assert "CONSOLE" not in done.stderr
