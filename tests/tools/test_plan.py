"""Planning for TPUs; tests that need the TPU compiler are skipped if it is not installed."""

import importlib.util
import types

import jax
import pytest
from test_end_to_end import ROOT

from drnas_jax.config import from_config_dict
from drnas_jax.tools import plan

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def config_of(file, variant, **search):
    module = importlib.import_module(f"configs.{file}")
    values = module.get_config(variant)
    values.search.update(search)
    return from_config_dict(values)


def refused(capsys, *argv):
    assert plan.main(["plan", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    return err


def test_hours_of_a_search():
    # Would catch steps with frozen alpha at full cost, or both bounds from the same estimate.
    config = config_of("imagenet", "")  # 25 + 25 epochs, 10 of each with frozen alpha
    stages = [
        plan.Plan(1, 100, 6, 7, 1e9, True, (0.1, 1.0), "", 0.0),
        plan.Plan(2, 100, 3, 4, 1e9, True, (0.3, 2.0), "", 0.0),
    ]
    fast, slow = plan.search_hours(config, stages)
    assert fast == pytest.approx((25 - 5) * 100 * (0.1 + 0.3) / 3600)
    assert slow == pytest.approx((25 - 5) * 100 * (1.0 + 2.0) / 3600)


def test_a_bound_may_be_unknown():
    # Would catch a sum over only some stages, or a table that fails without an estimate.
    config = config_of("imagenet", "")
    stages = [
        plan.Plan(1, 100, 6, 7, 1e9, True, (0.1, 1.0), "", 0.0),
        plan.Plan(2, 100, 3, 4, 1e9, True, (0.3, None), "", 0.0),
    ]
    fast, slow = plan.search_hours(config, stages)
    assert fast == pytest.approx((25 - 5) * 100 * (0.1 + 0.3) / 3600) and slow is None
    devices = [types.SimpleNamespace(device_kind=next(iter(plan.CHIPS)))] * 16
    table = plan.table(config, devices, stages)
    seconds, images = ([*column.cells] for column in table.columns[6:8])
    assert seconds == ["0.100 to 1.000", "0.300 to ?"]
    assert images == ["1,024 to 10,240", "? to 3,413"]


def test_imagenet_need_not_be_on_this_machine():
    # Would catch a plan that looks for the files of ImageNet.
    config = config_of("imagenet", "")
    stream = plan.stand_in(config)
    assert (stream.count, stream.shape, stream.num_classes) == (1_281_167, (224, 224, 3), 1000)


def test_a_missing_compiler_is_reported(capsys, monkeypatch):
    # Would catch an import error in place of what to install.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[tpu]'" in refused(capsys, "--config=configs/digits.py")


def test_an_unknown_stage(capsys):
    # Would catch an index error in place of the stages that exist.
    error = refused(capsys, "--config=configs/digits.py", "--stage=3")
    assert "--stage is 3" in error and "1 to 2" in error


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x3", "v9:4x4", "16", "v4:2x2x2"])
def test_an_unknown_topology(capsys, topology):
    # Would catch a traceback of the compiler.
    assert repr(topology) in refused(capsys, "--config=configs/digits.py", f"--topology={topology}")


@needs_libtpu
def test_a_batch_that_does_not_divide_over_the_chips(capsys):
    # Would catch a late error of the compiler.
    argv = ("--config=configs/digits.py:smoke", "--topology=v5e:8x8")
    assert plan.main(["plan", *argv]) == 2
    assert "search.batch_size = 32" in capsys.readouterr().err


@needs_libtpu
@pytest.mark.slow
def test_both_stages(capsys):
    # Would catch a stage with the K or operations of another, or a plan that runs on the TPU.
    assert plan.main(["plan", "--config=configs/digits.py:smoke", "--topology=v5e:2x2"]) == 0
    head, *lines = capsys.readouterr().out.strip().splitlines()
    assert head == "4 x TPU v5 lite, float32"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert [row[:5] for row in rows[2:]] == [["1", "4", "5", "32", "8"], ["2", "2", "3", "32", "8"]]
    assert "hours" in lines[-1]
    assert jax.default_backend() == "cpu"
