"""The table of NAS-Bench-201, against facts that the benchmark's authors published."""

import bz2
import pickle
import sys
from pathlib import Path

import pytest

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces.darts.published import PUBLISHED
from drnas_jax.spaces.nasbench201 import create as create_space
from drnas_jax.spaces.nasbench201 import parse
from drnas_jax.tables.nasbench201 import convert, create, from_nats_bench, load

HEADER = "index,arch_str,cifar100_test_200,cifar10_test_200,cifar100_valid_12"
REAL = Path(__file__).parents[3] / "shared" / "nasbench201" / "nasbench201.csv"


def write(tmp_path, *lines):
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_query(tmp_path):
    # Would catch a rank that begins at the wrong end, and a changed entry in result.json.
    table = load(write(tmp_path, HEADER, "0,a,70,90.5,40", "1,b,72,94.25,60.5", "2,c,3,10,1"))
    assert table.query("b") == {
        "cifar10": {"test_200": 94.25},
        "cifar100": {"test_200": 72.0, "valid_12": 60.5},
        "imagenet16_120": {},
        "rank": 1,
        "percentile": 100.0,
    }
    assert table.query("c")["percentile"] == 0.0
    assert table.query("a")["rank"] == 2


def test_a_genotype_is_looked_up(tmp_path):
    # Would catch columns in the order of the file: CIFAR-10 comes first.
    archs = [
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|",
    ]
    table = create(
        str(write(tmp_path, HEADER, f"0,{archs[0]},70,90.5,40", f"1,{archs[1]},72,94.25,60.5"))
    )
    genotype = parse(archs[1])
    accuracies = table.accuracies(genotype)
    assert list(accuracies.items()) == [("cifar10", 94.25), ("cifar100", 72.0)]
    assert table.rank(genotype) == (1, 2)
    assert table.query(genotype) == table.query(archs[1])


@pytest.mark.parametrize(
    "genotype",
    [
        parse("|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"),
        PUBLISHED["drnas_cifar10"],
        Genotype("mine", PUBLISHED["drnas_cifar10"].cells),
    ],
)
def test_an_unknown_genotype_has_no_entry(tmp_path, genotype):
    # Would catch an evaluation that fails at its end, since its genotype is of another space.
    table = load(write(tmp_path, HEADER, "0,a,70,90.5,40"))
    assert table.accuracies(genotype) is table.query(genotype) is table.rank(genotype) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["index,arch_str,cifar10_test_12"], "no column 'cifar10_test_200'"),
        (["index,cifar10_test_200"], "no column 'arch_str'"),
        ([HEADER, "0,a,70,90,1", "1,b,70,x,1"], "line 3"),
        ([HEADER, "0,a,70,90,nan"], "line 2"),
        ([HEADER, "0,a,70,101,1"], "line 2"),
        ([HEADER, "0,a,70,90"], "line 2"),
        ([HEADER, "0,a,70,90,1", "1,a,70,91,1"], "line 3"),
        ([""], "no column"),
    ],
)
def test_damage_is_located(tmp_path, lines, message):
    # Would catch a damaged file that is read as other accuracies.
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path, *lines))
    assert str(tmp_path / "table.csv") in str(caught.value)


@pytest.mark.skipif(not REAL.exists(), reason=f"the real table is not at {REAL}")
def test_real_table():
    # Would catch cells or columns that are mixed up.
    table = load(REAL)
    assert len(table.rows) == 5**6
    best = max(table.rows, key=lambda arch: table.accuracies(arch)["cifar10"])
    # 94.37 is the best CIFAR-10 test accuracy of the space, as the DrNAS paper gives it.
    assert round(table.query(best)["cifar10"]["test_200"], 2) == 94.37
    assert table.rank(best) == (1, 5**6)
    assert all(create_space().describe(parse(arch)) == arch for arch in table.rows)


def test_unreadable_files(tmp_path):
    # Would catch errors of the operating system and of the CSV reader that pass as tracebacks.
    long = write(tmp_path, HEADER, f"0,{'a' * 200_000},90,1")
    for path in (tmp_path, tmp_path / "nowhere.csv", long):
        with pytest.raises(UserError, match=str(path)):
            load(path)


ARCHS = [
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|",
]


def accuracy(index, dataset, epochs, part):
    """Returns a different number for each result that a NATS-Bench file holds."""
    datasets = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120")
    parts = ("train", "x-valid", "x-test", "ori-test")
    number = (index * 4 + datasets.index(dataset)) * 4 + parts.index(part)
    return number + (0.25 if epochs == "200" else 0.5)


# The result that each column should hold; get_metrics of NATS-Bench describes the data sets.
EXPECTED = {
    ("cifar10", "test_12"): ("cifar10", "12", "ori-test"),
    ("cifar10", "valid_12"): ("cifar10-valid", "12", "x-valid"),
    ("cifar10", "test_200"): ("cifar10", "200", "ori-test"),
    ("cifar100", "test_12"): ("cifar100", "12", "x-test"),
    ("cifar100", "valid_12"): ("cifar100", "12", "x-valid"),
    ("cifar100", "test_200"): ("cifar100", "200", "x-test"),
    ("imagenet16_120", "test_12"): ("ImageNet16-120", "12", "x-test"),
    ("imagenet16_120", "valid_12"): ("ImageNet16-120", "12", "x-valid"),
    ("imagenet16_120", "test_200"): ("ImageNet16-120", "200", "x-test"),
}


def check_table(path):
    table = load(path)
    assert list(table.rows) == ARCHS
    for index, arch in enumerate(ARCHS):
        for (dataset, split), source in EXPECTED.items():
            assert table.query(arch)[dataset][split] == accuracy(index, *source)
    assert path.read_text().splitlines()[0] == (
        "index,arch_str,cifar10_test_12,cifar10_valid_12,cifar100_test_12,cifar100_valid_12,"
        "imagenet16_120_test_12,imagenet16_120_valid_12,cifar10_test_200,cifar100_test_200,"
        "imagenet16_120_test_200"
    )


class FakeApi:
    """The methods of nats_bench 1.8 that the converter uses."""

    def __len__(self):
        return len(ARCHS)

    def arch(self, index):
        return ARCHS[index]

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
        assert is_random is False  # otherwise the result is that of a random seed
        test = "ori-test" if dataset.startswith("cifar10-") or dataset == "cifar10" else "x-test"
        info = {"test-accuracy": accuracy(index, dataset, hp, test)}
        if dataset != "cifar10":
            info["valid-accuracy"] = accuracy(index, dataset, hp, "x-valid")
        return info


def test_convert_with_a_fake(tmp_path, monkeypatch):
    # Would catch columns from the wrong data set, split or number of epochs.
    calls = []

    class Module:
        @staticmethod
        def create(path, space, fast_mode, verbose):
            calls.append((path, space, fast_mode, verbose))
            return FakeApi()

    monkeypatch.setitem(sys.modules, "nats_bench", Module)
    official, table = tmp_path / "official", tmp_path / "table.csv"
    official.touch()
    assert convert(official, table) == len(ARCHS)
    check_table(table)
    assert calls == [(str(official), "tss", False, False)]
    convert(tmp_path, tmp_path / "again.csv")
    assert calls[1] == (str(tmp_path), "tss", True, False)
    assert not list(tmp_path.glob("*.tmp"))


def test_convert_without_the_package(tmp_path, monkeypatch):
    # Would catch an ImportError that does not say what to install.
    monkeypatch.setitem(sys.modules, "nats_bench", None)
    with pytest.raises(UserError, match="pip install nats_bench"):
        convert(tmp_path, tmp_path / "table.csv")


def test_missing_results_are_named():
    # Would catch a table with holes.
    class Incomplete(FakeApi):
        def get_more_info(self, index, dataset, **options):
            return (
                {}
                if (index, dataset) == (1, "cifar100")
                else super().get_more_info(index, dataset, **options)
            )

    with pytest.raises(UserError, match="no test-accuracy of cell 1 on cifar100 after 12 epochs"):
        list(from_nats_bench(Incomplete()))


def official_results(nats_bench, index):
    """Returns the results of a cell in NATS-Bench's classes: two seeds around `accuracy`."""
    results = {}
    for epochs in ("12", "200"):
        cell = nats_bench.ArchResults(index, ARCHS[index])
        for dataset in ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120"):
            for seed, offset in ((777, -0.125), (888, 0.125)):
                train = {i: accuracy(index, dataset, epochs, "train") for i in range(2)}
                trial = nats_bench.ResultsCount(
                    dataset, None, train, train, 1.0, 1.0, {}, seed, 2, None
                )
                parts = {
                    "cifar10-valid": ("x-valid", "ori-test"),
                    "cifar10": ("ori-test",),
                }.get(dataset, ("x-valid", "x-test", "ori-test"))
                for part in parts:
                    last = accuracy(index, dataset, epochs, part) + offset
                    trial.update_OLD_eval(part, {0: 1.0, 1: last}, {0: 1.0, 1: 1.0})
                cell.update(dataset, seed, trial)
        results[epochs] = cell.state_dict()
    return results


def pickle_to(path, value):
    path.write_bytes(bz2.compress(pickle.dumps(value)))


def test_convert_with_nats_bench_itself(tmp_path):
    # Would catch a fake that behaves differently from the package.
    nats_bench = pytest.importorskip("nats_bench", reason="needs the optional nats_bench")
    cells = {i: official_results(nats_bench, i) for i in range(len(ARCHS))}
    file, folder = tmp_path / "tss.pickle.pbz2", tmp_path / "simple"
    meta = {"meta_archs": ARCHS, "arch2infos": cells, "evaluated_indexes": set(cells)}
    pickle_to(file, meta)
    folder.mkdir()
    pickle_to(folder / "meta.pickle.pbz2", {"meta_archs": ARCHS})
    for index, cell in cells.items():
        pickle_to(folder / f"{index:06d}.pickle.pbz2", cell)
    for source in (file, folder):
        assert convert(source, tmp_path / "table.csv") == len(ARCHS)
        check_table(tmp_path / "table.csv")

    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not a NATS-Bench topology file"):
        convert(file, tmp_path / "table.csv")
    with pytest.raises(UserError, match="nowhere does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "table.csv")
    (folder / "000001.pickle.pbz2").unlink()
    with pytest.raises(UserError, match="of cell 1 on cifar10 after 12 epochs"):
        convert(folder, tmp_path / "other.csv")
    assert not list(tmp_path.glob("other.csv*"))
