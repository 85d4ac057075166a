"""The report of a run: complete, and safe against any content of a workdir."""

import json
import re

import numpy as np
import pytest
from finished_run import EDGES, EPOCHS, cell, make
from plotly.offline import get_plotlyjs

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.files import append_history, write_json
from drnas_jax.genotype import from_cells, save, to_json
from drnas_jax.phases.confusions import Evaluation
from drnas_jax.report import figures
from drnas_jax.report import page as report
from drnas_jax.training.progress import Status


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
        "Result", "Errors", "Search", "Exploration", "Mixing weights", "Retraining", "Settings",
    ]  # fmt: skip
    for words in ("87.65 %", "12,345", "6 of 6 epochs", "nor_conv_3x3~0"):
        assert words in page
    # The library in the page mentions addresses of maps, which nothing here asks for.
    page = page.replace(get_plotlyjs(), "")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=(?!.data:)", page)
    assert "http-equiv" not in page and "<progress" not in page  # the run has ended
    assert "overdue" not in page


def test_a_cost_is_shown_with_its_target(tmp_path):
    # Would catch a page that does not say what the network costs, or how the search came there.
    changes = dict(cost__name="macs", cost__target=7e4)
    workdir = make(tmp_path / "run", tmp_path, **changes)
    plain = report.write_report([workdir]).read_text()
    assert "cost.target, " not in plain and '"expected cost"' not in plain
    cost = {"name": "macs", "unit": "multiply-adds", "exact": 67890, "target": 7e4}
    save(workdir / "search/genotype.json", cell("nor_conv_3x3"), {"cost": cost})
    lines = (workdir / "search/history.jsonl").read_text().splitlines()
    (workdir / "search/history.jsonl").unlink()
    for line in lines:
        append_history(workdir / "search/history.jsonl", {**json.loads(line), "expected_cost": 8e4})
    page = report.write_report([workdir]).read_text()
    assert ["cost, multiply-adds", "67,890"] in rows_of(page)
    assert ["cost.target, multiply-adds", "70,000"] in rows_of(page)
    assert page.count('"name":"cost.target"') == page.count('"name":"expected cost"') == 1
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
    words = "better than 2 of the 4 other random cells (mean 40.00 %, best 70.00 %)"
    assert ["result in the supernet", f"60.00 % on 1,280 validation images, {words}"] in rows
    assert ["search stopped early", "it has &lt;seen&gt; enough"] in rows
    for wrong in ({**compared, "random": []}, {**compared, "random": ["x"]}, {"images": 1}):
        save(file, cell("nor_conv_3x3"), {"compared": wrong})
        with pytest.raises(UserError, match="compared: (random|accuracy) is"):
            report.write_report([workdir])


def test_titles_come_from_the_table(workdir):
    # Would catch a report that knows one benchmark by name.
    page = report.write_report([workdir]).read_text()
    for row in (
        ["true test accuracy, images", "90.00 %"],
        ["true test accuracy, sounds", "7.00 %"],
        ["rank in The table of convolutions", "1 of 7"],
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
    page = report.write_report([workdir]).read_text()
    assert {"Result", "Mixing weights"} <= set(sections(page))
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


def test_a_run_that_has_just_begun_has_a_report(workdir):
    # Would catch a section that needs a file which a later phase writes.
    for name in ("search/genotype.json", "result.json", "retrain/history.jsonl", "evaluation.npz"):
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
    for words in ([], ["--outptu=page.html", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            report.main(words)
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

    monkeypatch.setattr(figures, "curves", broken)
    with pytest.raises(KeyError, match="bug"):
        report.write_report([workdir])


def test_a_run_that_goes_on_shows_how_far_it_is(workdir):
    # Would catch a page that must be loaded again by hand, and one that does so for ever.
    (workdir / "search/genotype.json").unlink()
    (workdir / "result.json").unlink()
    status = Status("search, stage 2/2", 4, 6, seconds=100.0, epoch_seconds=90.0)
    page = report.write_report([workdir], status=status).read_text()
    assert '<meta http-equiv="refresh" content="90">' in page
    assert "search, stage 2/2: epoch 4 of 6, about 3 min 0 s left in this phase" in page
    assert '<progress value="4" max="6">' in page
    assert '<p id="late" hidden>' in page
    assert "Result so far" in sections(page)
    assert f"Genotype after epoch {EPOCHS}" in page and "nor_conv_3x3~0" in page
    page = report.write_report([workdir]).read_text()
    assert "http-equiv" not in page.replace(get_plotlyjs(), "")


def test_frozen_epochs_are_named(tmp_path):
    # Would catch flat curves that look like a fault.
    changes = dict(search__warmup_epochs=(2, 1), search__epochs=(3, 4))
    workdir = make(tmp_path / "run", tmp_path, **changes)
    page = report.write_report([workdir]).read_text()
    assert "Alpha is frozen in the epochs 1 to 2 and 4." in page


def test_weights_have_one_scale_and_pruning_is_dated(workdir):
    # Would catch uniform weights in the darkest colour, and operations that vanish unexplained.
    page = report.write_report([workdir]).read_text()
    assert '"zmax":1,' in page and '"zmin":0,' in page
    assert ["1", "1 to 3", "5", "2"] in rows_of(page) and ["2", "4 to 6", "4", "1"] in rows_of(page)
    # Of the edges all operations but one are kept; skip_connect was last there in epoch 3.
    assert page.count('<td class="gone">3</td>') == EDGES
    assert page.count('<td class="chosen">result</td>') == EDGES
    assert page.count('<td class="kept">kept</td>') == 3 * EDGES


def test_errors_are_shown(workdir, tmp_path):
    # Would catch counts of the transposed matrix, names that are not escaped, and a page that
    # holds a million counts.
    page = report.write_report([workdir]).read_text()
    assert "7 of 9 test images are classified wrongly" in page
    assert "cat taken for &lt;dog&gt;: 4 images" in page
    assert ["&lt;dog&gt;", "3", "33.33 %", "cat (2)"] in rows_of(page)
    assert page.count(' src="data:image/png;base64,') == 6
    assert "All classes" in page
    classes = tuple(f"class {i}" for i in range(1000))
    confusion = np.roll(np.diag(np.arange(1, 1001)), 1, axis=1)
    numbers, pictures = np.zeros(0, int), np.zeros((0, 2, 2, 3), np.uint8)
    many = Evaluation(classes, confusion, numbers, numbers, numbers, np.float32([]), pictures)
    many.save(workdir / "evaluation.npz")
    large = report.write_report([workdir]).read_text()
    assert "class 999 taken for class 0: 1,000 images" in large and "All classes" not in large
    assert len(large) < len(page) + 10_000
