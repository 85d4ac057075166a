"""Which table a run has, and where its file is found."""

import json

import pytest

from drnas_jax import tables
from drnas_jax.config import defaults, from_config_dict
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, from_cells, to_cells

HEADER = "arch_str,cifar10_test_200\n"

# A table of the user's own, with the methods that a table must have and no others.
MINE = """
import json

from drnas_jax.genotype import from_cells
from drnas_jax.tables import Table

FILE = "mine/cells.json"


class Mine(Table):
    title = "My cells"
    space = "chain"

    def __init__(self, file):
        with open(file) as lines:
            self.known = {
                from_cells("chain", cells, file): accuracy for cells, accuracy in json.load(lines)
            }

    def accuracies(self, genotype):
        return {"digits": self.known[genotype]} if genotype in self.known else None


create = Mine
"""


def cell(*names):
    return Genotype("chain", (("cell", tuple(((name, i),) for i, name in enumerate(names))),))


CELLS = {cell("a", "b"): 90.5, cell("b", "b"): 80.0}


def config(**changes):
    values = defaults()
    values.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return from_config_dict(values)


@pytest.fixture
def mine(tmp_path):
    """A user's module, and its file beside the data directory."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine").mkdir()
    cells = [[to_cells(genotype), accuracy] for genotype, accuracy in CELLS.items()]
    (tmp_path / "mine/cells.json").write_text(json.dumps(cells))
    return str(tmp_path / "mine.py")


def test_a_table_of_the_users_own(mine, tmp_path):
    # Would catch a protocol that asks for more than it says.
    table = tables.open_table(config(table__name=mine, data__dir=str(tmp_path / "tfds")))
    assert table.title == "My cells"
    for genotype, accuracy in CELLS.items():
        assert table.accuracies(genotype) == table.query(genotype) == {"digits": accuracy}
        assert table.rank(genotype) is None
    assert table.accuracies(cell("a", "a")) is table.query(cell("a", "a")) is None
    other = from_cells("nasbench201", to_cells(cell("a", "b")), "")
    assert table.accuracies(other) is None


def test_a_named_table_without_its_file_is_an_error(mine, tmp_path):
    # Would catch a run that silently lacks the table that the user asked for.
    for data_dir in ("", str(tmp_path / "elsewhere/tfds")):
        with pytest.raises(UserError, match="mine/cells.json"):
            tables.locate(config(table__name=mine, data__dir=data_dir))


def test_the_table_of_the_space_is_found(tmp_path, monkeypatch):
    # Would catch a file that is not found beside the data, or one that hides the named file.
    beside, data_dir = tmp_path / "nasbench201" / "nasbench201.csv", str(tmp_path / "tfds")
    assert tables.open_table(config(data__dir=data_dir)) is None
    assert tables.open_table(config()) is None
    beside.parent.mkdir()
    beside.write_text(HEADER)
    assert tables.open_table(config(data__dir=data_dir)).title == "NAS-Bench-201"
    assert tables.locate(config(data__dir=data_dir))[1] == str(beside)
    assert tables.locate(config(table__file=str(beside)))[1] == str(beside)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tables.locate(config(data__dir="~/tfds"))[1] == str(beside)
    named = config(table__file="~/nasbench201/nasbench201.csv", data__dir="nowhere")
    assert tables.locate(named)[1] == str(beside)


def test_a_file_that_does_not_exist_is_an_error(tmp_path):
    # Would catch a mistyped path that is replaced by the file beside the data.
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        tables.locate(config(table__file="nowhere.csv", data__dir=str(tmp_path)))


def test_a_space_without_a_table(tmp_path):
    # Would catch a file that is ignored without a word.
    (tmp_path / "table.csv").write_text(HEADER)
    assert tables.open_table(config(space="darts", data__dir=str(tmp_path / "tfds"))) is None
    with pytest.raises(UserError, match=r"darts has no bundled table: set table\.name"):
        tables.locate(config(space="darts", table__file=str(tmp_path / "table.csv")))


def test_an_unknown_table_is_an_error():
    # Would catch a message that does not list the bundled tables.
    with pytest.raises(UserError, match="nasbench201"):
        tables.locate(config(table__name="nasbench202"))
