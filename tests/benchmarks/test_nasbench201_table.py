"""The table of true accuracies, against facts that the benchmark's authors published."""

from pathlib import Path

import pytest

from drnas_jax.benchmarks.nasbench201 import load, locate
from drnas_jax.errors import UserError
from drnas_jax.spaces.nasbench201 import describe, parse

HEADER = "index,arch_str,cifar10_test_200,cifar100_valid_12"
REAL = Path(__file__).parents[3] / "shared" / "nasbench201" / "nasbench201.csv"


def write(tmp_path, *lines):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_query(tmp_path):
    path = write(tmp_path, HEADER, "0,a,90.5,40", "1,b,94.25,60.5", "2,c,10,1")
    assert load(path).query("b") == {
        "cifar10": {"test_200": 94.25},
        "cifar100": {"valid_12": 60.5},
        "imagenet16_120": {},
        "rank": 1,
        "percentile": 100.0,
    }
    assert load(path).query("c")["percentile"] == 0.0
    assert load(path).query("a")["rank"] == 2
    with pytest.raises(UserError, match="'d' is not in the"):
        load(path).query("d")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["index,arch_str,cifar10_test_12"], "no column 'cifar10_test_200'"),
        (["index,cifar10_test_200"], "no column 'arch_str'"),
        ([HEADER, "0,a,90,1", "1,b,x,1"], "line 3, is damaged"),
        ([HEADER, "0,a,90,nan"], "line 2, is damaged"),
        ([HEADER, "0,a,101,1"], "line 2, is damaged"),
        ([HEADER, "0,a,90"], "line 2, is damaged"),
        ([HEADER, "0,a,90,1", "1,a,91,1"], "line 3: a stands there twice"),
        ([""], "no column"),
    ],
)
def test_damage_is_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, *lines))


def test_locate(tmp_path):
    beside = tmp_path / "nasbench201" / "nasbench201.csv"
    data_dir = str(tmp_path / "tfds")
    assert locate("", data_dir) is None
    assert locate("", "") is None
    beside.parent.mkdir()
    beside.write_text(HEADER)
    assert locate("", data_dir) == beside
    assert locate(str(beside), "") == beside
    with pytest.raises(UserError, match="nowhere.csv"):
        locate("nowhere.csv", data_dir)


@pytest.mark.skipif(not REAL.exists(), reason=f"the real table is not at {REAL}")
def test_real_table():
    table = load(REAL)
    assert len(table.ranks) == 5**6
    best = min(table.ranks, key=table.ranks.get)
    # 94.37 is the best CIFAR-10 test accuracy of the space (DrNAS paper, table 3, 'optimal').
    assert round(table.query(best)["cifar10"]["test_200"], 2) == 94.37
    assert all(describe(parse(arch)) == arch for arch in table.ranks)
