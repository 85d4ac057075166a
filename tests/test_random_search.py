"""The example that takes the best of random cells which were trained apart."""

import importlib.util
import json
from pathlib import Path

import pytest
from finished_run import make

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.files import append_history, write_json
from drnas_jax.genotype import load

FILE = Path(__file__).parents[1] / "examples" / "random_search.py"


@pytest.fixture
def main():
    spec = importlib.util.spec_from_file_location("random_search", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def workdir(tmp_path):
    """Three finished runs, each of whose last epochs is not its best."""
    directory = tmp_path / "runs"
    fields = dict(genotype="random", retrain__epochs=3, table__name="")
    for seed, accuracy in ((4, 0.5), (5, 0.7), (6, 0.6)):
        run = make(directory / f"seed{seed}", tmp_path, seed, **fields)
        for name in ("search/genotype.json", "result.json", "retrain/history.jsonl"):
            (run / name).unlink()
        for epoch, valid in enumerate((0.1, 0.9 - accuracy / 2, accuracy), start=1):
            append_history(run / "retrain/history.jsonl", {"epoch": epoch, "valid_accuracy": valid})
    described = json.loads((run / "config.json").read_text())
    described["config"].update(seed=4, seeds=3)
    write_json(directory / "config.json", described)
    return directory


def test_the_best_cell_after_the_last_epoch_wins(main, workdir, capsys):
    # Would catch the best epoch in place of the last one, and the cell of another seed.
    main(str(workdir))
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "70.00" and "seed5" in first
    assert last == str(workdir / "best.json")
    assert load(last) == spaces.random_genotype(spaces.create("nasbench201"), 5)
    assert json.loads(Path(last).read_text())["provenance"]["cells"] == 3


def test_cells_that_cannot_be_compared_are_refused(main, workdir):
    # Would catch a winner among cells that were trained for different times.
    file = workdir / "seed6/retrain/history.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(UserError, match="seed6 has done 2 of 3 epochs"):
        main(str(workdir))
    file.write_text("\n".join([*lines[:2], '{"epoch": 3}']) + "\n")
    with pytest.raises(UserError, match="seed6 has no validation"):
        main(str(workdir))
