"""The table of NAS-Bench-Macro: a small one, damaged ones, and the benchmark's own."""

import pytest

from drnas_jax import tables
from drnas_jax.config import defaults, from_config_dict
from drnas_jax.errors import UserError
from drnas_jax.spaces.darts.published import PUBLISHED
from drnas_jax.spaces.macro import parse
from drnas_jax.tables.nasbench_macro import create, load

HEADER = "arch,mean_test_accuracy,test_1,test_2,params,flops"
LINES = (
    "00000000,45.5,45,46,387882,7713280",
    "22212202,93.25,93,93.5,1985514,85164544",
    "22212220,93.25,93,93.5,1985514,85164544",
    "22222222,92.75,92.5,93,2932586,105660928",
)


def write(folder, *lines):
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_query(tmp_path):
    # Would catch a rank that begins at the wrong end, other ranks for equal networks, and a changed
    # entry in result.json.
    table = create(str(write(tmp_path, HEADER, *LINES)))
    assert table.query(parse("22222222")) == {
        "code": "22222222",
        "cifar10": {"test": 92.75, "runs": [92.5, 93.0]},
        "params": 2_932_586,
        "macs": 105_660_928,
        "rank": 3,
        "percentile": 33.333,
    }
    assert table.accuracies(parse("22222222")) == {"cifar10": 92.75}
    assert table.rank("22212220") == table.rank("22212202") == (1, 4)
    assert table.rank("00000000") == (4, 4)


def test_what_the_table_does_not_hold(tmp_path):
    # Would catch a genotype of another space that fails instead of having no entry.
    table = load(write(tmp_path, HEADER, *LINES))
    for other in (parse("11111111"), "11111111", PUBLISHED["drnas_cifar10"]):
        assert table.query(other) is table.accuracies(other) is table.rank(other) is None


@pytest.mark.parametrize(
    "lines, message",
    [
        (["arch,params,flops"], "no column 'mean_test_accuracy'"),
        ([""], "no column 'arch'"),
        ([HEADER, *LINES, LINES[0]], "line 6: 00000000 occurs twice"),
        ([HEADER, "00000000,45.5,45,46"], "line 2, is damaged"),
        ([HEADER, "00000000,45.5,nan,46,1,2"], r"line 2, is damaged \(nan is not a percentage"),
        ([HEADER, "00000000,101,45,46,1,2"], r"101\.0 is not a percentage"),
        ([HEADER, "00000000,45.5,45,46,1,2.5"], "line 2, is damaged"),
        ([HEADER, "00000000,45.5,45,46,0,2"], "0 is not a positive count"),
        ([HEADER, "00000000,45.5,45,46,1," + "9" * 30], "is not a positive count"),
    ],
)
def test_damaged_files_are_refused(tmp_path, lines, message):
    # Would catch wrong accuracies that reach a report, and a traceback.
    with pytest.raises(UserError, match=message) as raised:
        load(write(tmp_path, *lines))
    assert "table.csv" in str(raised.value)


def test_unreadable_files(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.csv"):
        with pytest.raises(UserError, match=str(path)):
            load(path)


def test_the_table_is_found_by_its_space(tmp_path):
    # Would catch a recipe that needs the table's name, or a file that is not found beside the data.
    config = defaults()
    config.space, config.data.dir = "macro", str(tmp_path / "tfds")
    assert tables.open_table(from_config_dict(config)) is None
    (tmp_path / "nasbench_macro").mkdir()
    file = tmp_path / "nasbench_macro" / "nasbench_macro_cifar10.csv"
    write(tmp_path, HEADER, *LINES).rename(file)
    for config.table.name in ("", "nasbench_macro"):
        assert tables.open_table(from_config_dict(config)).title == "NAS-Bench-Macro"


def test_the_real_table(shared):
    # Would catch a column that is read as another one.
    table = load(shared / "nasbench_macro" / "nasbench_macro_cifar10.csv")
    assert len(table.rows) == 3**8
    assert table.query("22212220")["rank"] == table.query("22212202")["rank"] == 1
    assert round(table.accuracies("22212220")["cifar10"], 2) == 93.13
    assert round(table.accuracies("22222222")["cifar10"], 2) == 92.95
    few = [code for code, row in table.rows.items() if table.macs[row] <= 20e6]
    assert len(few) == 30
    assert round(max(table.accuracies(code)["cifar10"] for code in few), 2) == 81.37
