"""The page that compares several runs: every section says which run it shows."""

import json
import re

import pytest
from finished_run import cell, make

from drnas_jax.files import append_history, write_json
from drnas_jax.genotype import save, to_cells, to_json
from drnas_jax.report import figures
from drnas_jax.report import page as report


@pytest.fixture
def workdir(tmp_path):
    return make(tmp_path / "run", tmp_path)


def rows_of(page):
    """The text of the cells of all table rows."""
    return [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page)]


def row_of(page, label):
    """The row of the table of all runs that has a label."""
    return next(row for row in rows_of(page) if row and row[0] == label and len(row) > 6)


def search_only(workdir):
    """Removes what the phases after the search have written."""
    for name in ("result.json", "retrain/history.jsonl", "evaluation.npz"):
        (workdir / name).unlink()
    save(workdir / "search/genotype.json", cell("nor_conv_3x3"), {"search_seconds": 75.0})


def test_no_page_of_a_single_run_is_replaced(workdir, tmp_path, capsys):
    # Would catch a comparison that overwrites the page of its first run.
    other = make(tmp_path / "below/other", tmp_path, seed=7)
    for directory in (workdir, other):
        (directory / "report.html").write_text("a single run")
    assert report.main([str(workdir), str(other)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'comparison.html'}\n"
    for directory in (workdir, other):
        assert (directory / "report.html").read_text() == "a single run"
    page = (tmp_path / "comparison.html").read_text()
    assert '<a href="below/other/report.html">below/other/report.html</a>' in page
    assert report.main([str(workdir), str(other), "--output", str(tmp_path / "x/both.html")]) == 0
    assert '<a href="../run/report.html">' in (tmp_path / "x/both.html").read_text()
    assert report.main([str(workdir), str(workdir)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(workdir / "report.html")


def test_each_figure_and_each_genotype_has_the_labels_of_its_runs(workdir, tmp_path):
    # Would catch a section that shows the first run as if it were all of them.
    other = make(tmp_path / "other", tmp_path, seed=7, arch__regulariser="kl")
    result = json.loads((other / "result.json").read_text())
    write_json(other / "result.json", {**result, "genotype": to_json(cell("skip_connect"))})
    page = report.write_report([workdir, other]).read_text()
    labels = "dirichlet, l2 penalty", "dirichlet, kl penalty"
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Comparison", "Genotypes", "Curves", "Single runs", "Settings",
    ]  # fmt: skip
    for label in labels:
        # In the validation accuracies, true accuracies, entropies and training accuracies.
        assert page.count(f'"name":"{label}"') == 4
        assert f"<p>Found by {label}:</p><svg" in page
        assert f"config.json, {label}" in page
    assert ["arch.regulariser", "l2", "kl"] in rows_of(page)
    assert row_of(page, labels[0])[1:] == [
        "run", "6", "54.00 %", "90.00 %", "7.00 %", "87.65 %", "12,345", "1 min 1 s",
    ]  # fmt: skip
    assert row_of(page, labels[1])[4] == "0.00 %"


def test_runs_with_the_same_genotype_share_its_picture(workdir, tmp_path):
    # Would catch a page that is filled with twenty equal pictures.
    other = make(tmp_path / "other", tmp_path, seed=7)
    page = report.write_report([workdir, other]).read_text()
    assert page.count(":</p><svg") == 1
    assert "<p>Found by dirichlet, seed 0; dirichlet, seed 7:</p><svg" in page


def test_what_is_missing_is_said(workdir, tmp_path):
    # Would catch a dash that a reader takes for a failure, and a time that is known but not shown.
    runs = [make(tmp_path / f"seed{seed}", tmp_path, seed) for seed in range(4)]
    search_only(runs[0])
    (runs[1] / "result.json").unlink()
    search_only(runs[2])
    (runs[2] / "search/genotype.json").unlink()
    page = report.write_report(runs).read_text()
    assert "<td>-</td>" not in page
    (*_, tested, _, seconds) = row_of(page, "dirichlet, seed 0")
    assert (tested, seconds) == ("not retrained", "1 min 15 s")
    (*_, tested, _, seconds) = row_of(page, "dirichlet, seed 1")
    assert (tested, seconds) == ("not evaluated", "not recorded")
    assert row_of(page, "dirichlet, seed 2")[4] == "no genotype yet"
    assert ["dirichlet", "4", *["90.00 ± 0.00 (3 of 4 runs)", "7.00 ± 0.00 (3 of 4 runs)"],
            "87.65 (1 of 4 runs)"] in rows_of(page)  # fmt: skip


def test_warnings_name_their_run(workdir, tmp_path):
    # Would catch a search that found nothing, among others that did.
    other = make(tmp_path / "other", tmp_path, seed=7)
    compared = {"images": 1280, "accuracy": 0.1, "random": [0.1, 0.6]}
    save(other / "search/genotype.json", cell("nor_conv_3x3"), {"compared": compared})
    page = report.write_report([workdir, other]).read_text()
    (warning,) = re.findall(r"<p>([^<]*better than chance[^<]*)</p>", page)
    assert warning.startswith("dirichlet, seed 7: ")


def test_the_workdir_of_several_seeds_stands_for_its_runs(workdir, tmp_path):
    # Would catch runs that count as different because of a field that changes no result.
    described = json.loads((workdir / "config.json").read_text())
    described["config"].update(seed=3, seeds=2)
    write_json(tmp_path / "runs/config.json", described)
    make(tmp_path / "runs/seed3", tmp_path, 3)
    make(tmp_path / "runs/seed4", tmp_path, 4, data__workers=7)
    assert report.write_report([tmp_path / "runs"]) == tmp_path / "runs/report.html"
    page = (tmp_path / "runs/report.html").read_text()
    assert ["dirichlet", "2", "90.00 ± 0.00", "7.00 ± 0.00", "87.65 ± 0.00"] in rows_of(page)


def test_diagnostics_of_all_runs_are_shown(workdir, tmp_path):
    # Would catch figures that show the first run only.
    other = make(tmp_path / "other", tmp_path, seed=7)
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
    for section in ("Curvature", "Agreement"):
        shown = page[page.index(f"<h2>{section}</h2>") :].split("</section>")[0]
        for label in ("dirichlet, seed 0", "dirichlet, seed 7"):
            assert shown.count(f'"name":"{label}"') == 1


def test_every_run_is_a_point(tmp_path):
    # Would catch a mean that hides its runs, and methods without a name.
    runs = [make(tmp_path / f"seed{seed}", tmp_path, seed) for seed in range(2)]
    runs.append(make(tmp_path / "gumbel", tmp_path, arch__name="gumbel"))
    page = report.write_report(runs).read_text()
    for measure in ("true test accuracy on images, %", "test accuracy, %", "search, minutes"):
        assert f'"text":"{measure}"' in page
    figure = figures.runs({"first": {"a": 1.0, "b": 3.0}, "second": {"c": 2.0}}, "value")
    points = [(trace.text, trace.y) for trace in figure.data if trace.mode == "markers"]
    assert points == [(("a", "b"), (1.0, 3.0)), (("c",), (2.0,))]
    (mean,) = (trace.y for trace in figure.data if trace.mode == "lines")
    assert mean == (2.0, 2.0)
