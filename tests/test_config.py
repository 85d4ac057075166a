"""Configs: what is accepted, frozen and compared; every mistake names its field."""

import ast
import dataclasses
import importlib
import json
import typing
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from drnas_jax import config as lib
from drnas_jax.config import Config, Stage, differences, freeze, from_config_dict, to_dict
from drnas_jax.configs import base, nasbench201
from drnas_jax.errors import UserError
from drnas_jax.flags import parse

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem != "base" and not path.stem.startswith("_")
)


def changed(**fields):
    """The base config with fields set, `search__lr` for search.lr."""
    values = base.get_config().to_dict()
    for name, value in fields.items():
        *groups, last = name.split("__")
        group = values
        for key in groups:
            group = group[key]
        group[last] = value
    return values


def test_base_is_accepted_and_frozen():
    config = from_config_dict(base.get_config())
    assert to_dict(config) == json.loads(json.dumps(base.get_config().to_dict()))
    assert config == from_config_dict(base.get_config().to_dict())
    assert hash(config) == hash(from_config_dict(base.get_config()))
    assert config != from_config_dict(changed(search__lr=0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert freeze(config) is config
    assert freeze(base.get_config()) == config


def fields(cls):
    """Field names, nested in their groups."""
    types = typing.get_type_hints(cls)
    return {name: fields(t) if dataclasses.is_dataclass(t) else None for name, t in types.items()}


def test_base_lists_the_fields_of_the_dataclasses():
    def names(values):
        return {
            name: names(value) if isinstance(value, dict) else None
            for name, value in values.items()
        }

    assert names(base.get_config().to_dict()) == fields(Config)


def test_what_may_change_is_a_field():
    assert set(lib.FREE) < {name for name, _ in lib._leaves(base.get_config().to_dict())}


def test_stages():
    config = from_config_dict(base.get_config())
    assert config.search.stages == (Stage(50, 4, 5, 10), Stage(50, 2, 3, 10))


def test_numbers_lists_and_scalars_become_what_the_field_is():
    config = from_config_dict(
        changed(
            arch__clip=5,
            search__epochs=[30],
            search__partial_channels=1,
            search__operations=(5,),
            search__warmup_epochs=[0],
        )
    )
    assert isinstance(config.arch.clip, float)
    assert config.search.stages == (Stage(30, 1, 5, 0),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        # Structure and types.
        (dict(search=3), "config field search holds 3: expected a group"),
        (dict(seedd=1), "unknown config field 'seedd': choose one of .*seed"),
        (dict(search__epoch=1), "unknown config field 'search.epoch': .*search.epochs"),
        (dict(seed="1"), "config field seed is '1': expected int"),
        (dict(seed=1.5), "config field seed is 1.5: expected int"),
        (dict(seed=True), "config field seed is True: expected int"),
        (dict(seed=None), "config field seed is None: expected int"),
        (dict(arch__lr="0.1"), "config field arch.lr is '0.1': expected float"),
        (dict(arch__lr=False), "config field arch.lr is False: expected float"),
        (dict(search__sync_batchnorm=1), "search.sync_batchnorm is 1: expected bool"),
        (dict(data__name=7), "config field data.name is 7: expected str"),
        (dict(search__epochs=(1, 2.5)), "config field search.epochs is 2.5: expected int"),
        (dict(search__epochs="50"), "config field search.epochs is '50': expected int"),
        # Choices and ranges.
        (dict(data__flip="maybe"), "unknown data.flip 'maybe': choose one of auto, no, yes"),
        (dict(data__crop="random"), "unknown data.crop 'random': choose one of padded, resized"),
        (dict(data__crop="resized"), "data.crop is 'resized', .*: set data.image_size"),
        (dict(data__corrupt="ignore"), "unknown data.corrupt 'ignore': choose one of error, skip"),
        (dict(data__mean=(0.5,)), r"data.mean is \(0.5,\) and data.std \(\): expected a number"),
        (dict(data__std=(0.1, 0.2)), r"data.mean is \(\) and data.std \(0.1, 0.2\): expected"),
        (
            dict(data__mean=(0.5, 0.5), data__std=(0.2, 0.0)),
            r"data.std \(0.2, 0.0\): .* those of data.std more than 0",
        ),
        (dict(data__mean=(123.7,), data__std=(58.4,)), "expected values of pixels in 0..1; divide"),
        (dict(data__mean=(-0.5,), data__std=(0.2,)), "data.mean is -0.5: expected a finite number"),
        (dict(retrain__color_jitter=0.4), r"retrain.color_jitter is \(0.4,\): expected \(bright"),
        (dict(retrain__color_jitter=(0, 1.5, 0, 0)), r"color_jitter is .*1.5.*: .* three up to 1,"),
        (dict(retrain__color_jitter=(0, 0, 0, 0.6)), r"color_jitter is .*0.6\): .* hue up to 0.5"),
        (dict(retrain__color_jitter=(-0.4, 0, 0, 0)), "retrain.color_jitter is -0.4: expected a"),
        (dict(arch__regulariser="l1"), "unknown arch.regulariser 'l1': .* kl, l2, none"),
        (dict(search__lr_schedule="step"), "unknown search.lr_schedule 'step': .* cosine, linear"),
        (dict(retrain__lr_schedule="step"), "unknown retrain.lr_schedule 'step'"),
        (dict(arch__temperature=(10.0,)), r"arch.temperature is \(10.0,\): expected two positive"),
        (dict(arch__temperature=(1.0, 0.0)), "arch.temperature is .*: expected two positive"),
        (dict(arch__b1=1.0), "config field arch.b1 is 1.0: expected less than 1"),
        (dict(arch__b2=2.0), "config field arch.b2 is 2.0: expected less than 1"),
        (dict(search__momentum=1.0), "config field search.momentum is 1.0: expected less than 1"),
        (dict(retrain__momentum=1.5), "config field retrain.momentum is 1.5: expected less than 1"),
        (dict(retrain__label_smoothing=1.0), "retrain.label_smoothing is 1.0: expected less than"),
        (
            dict(search__train_fraction=0.0),
            "search.train_fraction is 0.0: expected more than 0 and less than 1",
        ),
        (dict(search__candidates=9, search__candidate_batches=0), "search.candidate_batches is 0"),
        (
            dict(search__train_fraction=1),
            "search.train_fraction is 1.0: expected more than 0 and less than 1",
        ),
        (
            dict(search__alpha_fraction=0.6),
            "search.alpha_fraction 0.6: together they are more than",
        ),
        (dict(search__channels=0), "search.channels is 0: expected at least 1"),
        (dict(search__cells=0), "search.cells is 0: expected at least 1"),
        (dict(search__batch_size=-8), "search.batch_size is -8: expected at least 1"),
        (dict(retrain__batch_size=0), "retrain.batch_size is 0: expected at least 1"),
        (dict(retrain__epochs=0), "retrain.epochs is 0: expected at least 1"),
        (dict(seed=-1), "config field seed is -1: expected a finite number, 0 or more"),
        (dict(seeds=0), "config field seeds is 0: expected at least 1"),
        (dict(seed=2**32 - 1, seeds=2), "config field seed goes up to 4294967296: expected less"),
        (dict(seed=2**32), "config field seed goes up to 4294967296: expected less"),
        (dict(search__lr=-0.1), "config field search.lr is -0.1: expected a finite number"),
        (dict(arch__lr=float("nan")), "config field arch.lr is nan: expected a finite number"),
        (dict(arch__lr=float("inf")), "config field arch.lr is inf: expected a finite number"),
        (dict(search__warmup_epochs=(10, -1)), "search.warmup_epochs is -1: expected a finite"),
        # Stages.
        (dict(search__epochs=()), "search.epochs has 0, search.partial_channels has 2"),
        (dict(search__epochs=(1, 2, 3)), "search.epochs has 3, search.partial_channels has 2"),
        (dict(search__epochs=(1, 0)), r"search.epochs\[1\] is 0: expected at least 1"),
        (dict(search__operations=(5, 0)), r"search.operations\[1\] is 0: expected at least 1"),
        (dict(search__partial_channels=(4, 0)), r"search.partial_channels\[1\] is K = 0"),
        (
            dict(search__channels=18),
            r"search.partial_channels\[0\] is K = 4, which does not divide search.channels = 18",
        ),
        (dict(search__operations=(3, 5)), r"search.operations is \(3, 5\): a later stage"),
        (dict(search__partial_channels=(2, 4)), r"partial_channels is \(2, 4\): a later stage"),
    ],
)
def test_mistakes_name_the_field(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        from_config_dict(changed(**fields))
    assert "\n" not in str(caught.value)


def test_input_fields_at_the_ends_of_their_ranges():
    config = from_config_dict(
        changed(
            data__crop="resized",
            data__image_size=1,
            data__mean=[0, 1],
            data__std=(0.1, 1),
            retrain__color_jitter=(1, 1, 1, 0.5),
        )
    )
    assert (config.data.mean, config.data.std) == ((0.0, 1.0), (0.1, 1.0))
    assert config.retrain.color_jitter == (1.0, 1.0, 1.0, 0.5)


@pytest.mark.parametrize("name", ["seed", "search", "search.lr", "nasbench201.table"])
def test_a_missing_field_is_named(name):
    *groups, last = name.split(".")
    values = base.get_config().to_dict()
    group = values
    for key in groups:
        group = group[key]
    del group[last]
    with pytest.raises(UserError, match=f"config field {name} is missing: see configs/base.py"):
        from_config_dict(values)


def test_a_search_without_stages_is_refused():
    names = ("epochs", "partial_channels", "operations", "warmup_epochs")
    with pytest.raises(UserError, match="search.epochs is .*: the search needs at least one stage"):
        from_config_dict(changed(**{f"search__{name}": () for name in names}))


# Comparing two configs


def test_differences_name_the_field_and_both_values():
    old, new = changed(), changed(search__lr=0.5, seed=7, search__epochs=(1, 2))
    old, new = (to_dict(from_config_dict(values)) for values in (old, new))
    assert differences(old, old) == []
    assert differences(old, new) == [
        "search.epochs: [50, 50] there, [1, 2] here",
        "search.lr: 0.025 there, 0.5 here",
        "seed: 0 there, 7 here",
    ]


def test_locations_are_no_difference():
    elsewhere = changed(data__dir="/data", nasbench201__table="t.csv", checkpoint="runs/x")
    assert differences(changed(), elsewhere) == []


def test_a_field_that_only_one_has_is_a_difference():
    old = changed()
    del old["retrain"]["cutout"]
    assert differences(old, changed()) == ["retrain.cutout: None there, 0 here"]
    assert differences(changed(), old) == ["retrain.cutout: 0 there, None here"]


# On the command line


def parsed(*fields):
    argv = ["main", f"--config={ROOT / 'configs/base.py'}"]
    return parse([*argv, *(f"--config.{field}" for field in fields)], lambda values: None)[0]


@pytest.mark.parametrize("text", ["(3,7)", "(3, 7)", "3,7", "[3,7]"])
def test_a_tuple(text):
    assert parsed(f"search.epochs={text}").search.epochs == (3, 7)


def test_a_tuple_by_repetition_or_of_one():
    assert parsed("search.epochs=3", "search.epochs=7").search.epochs == (3, 7)
    single = [f"search.{name}=1" for name in ("epochs", "partial_channels", "warmup_epochs")]
    assert parsed(*single, "search.operations=(5,)").search.stages == (Stage(1, 1, 5, 1),)


def test_numbers_bools_and_strings():
    config = parsed(
        "arch.lr=1e-2",
        "search.clip=5",
        "search.sync_batchnorm=true",
        "data.dir=a b",
        "seed=4294967295",
    )
    assert config.arch.lr == 0.01
    assert config.search.clip == 5.0
    assert config.search.sync_batchnorm is True
    assert config.data.dir == "a b"
    assert config.seed == 2**32 - 1


# The recipes


def test_there_are_recipes():
    assert {"digits", "nasbench201"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_a_recipe_loads(name, variant):
    values = importlib.import_module(f"configs.{name}").get_config(variant)
    assert isinstance(values, ConfigDict)
    from_config_dict(values)


@pytest.mark.parametrize("size", nasbench201.SIZES)
@pytest.mark.parametrize("method", nasbench201.METHODS)
def test_a_method_changes_only_what_it_is(size, method):
    """All methods of a size search the same supernet on the same images, for as many epochs."""
    found = from_config_dict(nasbench201.get_config(f"{method},{size}"))
    plain = from_config_dict(nasbench201.get_config(f"{size},plain"))
    changes = {line.partition(":")[0] for line in differences(to_dict(plain), to_dict(found))}
    assert changes <= {
        "arch.name", "arch.regulariser", "search.candidates", "search.partial_channels",
        "search.operations", "search.epochs", "search.warmup_epochs", "search.channels",
    }  # fmt: skip
    assert ("arch.name" in changes) == (method not in ("plain", "progressive", "kl"))
    assert sum(found.search.epochs) >= sum(plain.search.epochs)


def test_two_methods_are_refused():
    for variant in ("darts,snas", "cpu,smoke", "cpu,cpu"):
        with pytest.raises(UserError, match="names two sizes or two methods"):
            nasbench201.get_config(variant)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_variant_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match="'nothing': choose one of .*smoke"):
        importlib.import_module(f"configs.{name}").get_config("nothing")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_to_run_it_how_long_it_takes_and_what_comes_out(name):
    doc = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())) or ""
    assert f"python -m drnas_jax.main --config=configs/{name}.py --workdir=" in doc
    assert "minutes" in doc or "hours" in doc or "not measured" in doc
    assert "accuracy" in doc or "error" in doc
