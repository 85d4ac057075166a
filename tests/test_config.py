"""Configs: what is accepted, frozen and compared; each mistake names its field."""

import dataclasses

import pytest
from changed_config import MODULE, changed, refused

from drnas_jax import components
from drnas_jax import config as lib
from drnas_jax.config import (
    Stage,
    defaults,
    freeze,
    from_config_dict,
    to_dict,
)
from drnas_jax.errors import UserError


@pytest.fixture
def module(tmp_path):
    """The path of a module of the user with options."""
    (tmp_path / "own.py").write_text(MODULE)
    return str(tmp_path / "own.py")


# The schema


def test_every_default_passes_its_own_check():
    # Would catch a default that the command line would refuse.
    config = from_config_dict(defaults())
    assert config == from_config_dict({}) == from_config_dict(defaults().to_dict())
    assert hash(config) == hash(from_config_dict({}))
    assert from_config_dict(to_dict(config)) == config


def test_every_field_has_a_meaning():
    # Would catch a field that --help cannot explain.
    for name, field in lib.schema():
        meaning = field.metadata["meaning"]
        assert meaning.endswith(".") and "\n" not in meaning, name
    for group in lib.GROUPS.values():
        assert group.__doc__.splitlines()[0].endswith("."), group


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_every_number_of_the_schema_has_a_check(value):
    # Would catch a field that takes -1 although no number of a run may be negative.
    for name, field in lib.schema():
        if not isinstance(field.default, bool | str | None):
            assert name in refused(**{name.replace(".", "__"): value})


def test_every_field_of_options_belongs_to_one_component():
    # Would catch a misspelt field in the metadata of a component.
    names = {name for name, _ in lib.schema()}
    assert set(lib.OPTIONS) <= names
    assert {name for name in names if name.endswith("options")} == set(lib.OPTIONS)
    assert set(lib.OPTIONS.values()) == set(lib.COMPONENTS)
    kinds = {one.kind for one in lib.COMPONENTS.values()}
    # A config may name several of these, and they have no options.
    assert kinds | {"format", "writer"} == set(components.KINDS)


def test_fields_that_may_change_are_fields():
    # Would catch a name in FREE that was renamed elsewhere.
    assert set(lib.FREE) <= {name for name, _ in lib.schema()}


def test_a_config_is_frozen():
    config = from_config_dict(defaults())
    assert config != from_config_dict(changed(search__lr=0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert freeze(config) is config
    assert freeze(defaults()) == config


def test_defaults_are_locked():
    # Would catch a recipe in which a misspelt field does nothing.
    config = defaults()
    with pytest.raises(AttributeError):
        config.sed = 1
    with pytest.raises(AttributeError):
        config.search.epoch = 1


def test_stages():
    assert from_config_dict({}).search.stages == (Stage(50, 4, 5, 10), Stage(50, 2, 3, 10))


def test_each_seed_is_a_run_of_its_own():
    runs = from_config_dict(changed(seed=4, seeds=2)).of_each_seed()
    assert [(run.seed, run.seeds) for run in runs] == [(4, 1), (5, 1)]


# Values


def test_numbers_lists_and_scalars_get_the_type_of_the_field():
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


def test_a_field_that_is_not_given_has_its_default():
    assert from_config_dict({"search": {"lr": 0.5}}) == from_config_dict(changed(search__lr=0.5))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        # Structure and types.
        (dict(search=3), ["search is 3", "group"]),
        (dict(seedd=1), ["'seedd'", "seed"]),
        (dict(search__epoch=1), ["'search.epoch'", "search.epochs"]),
        (dict(seed="1"), ["seed is '1'", "int"]),
        (dict(seed=1.5), ["seed is 1.5", "int"]),
        (dict(seed=True), ["seed is True", "int"]),
        (dict(seed=None), ["seed is None", "int"]),
        (dict(arch__lr="0.1"), ["arch.lr is '0.1'", "float"]),
        (dict(arch__lr=False), ["arch.lr is False", "float"]),
        (dict(search__sync_batchnorm=1), ["search.sync_batchnorm is 1", "bool"]),
        (dict(data__name=7), ["data.name is 7", "str"]),
        (dict(search__epochs=(1, 2.5)), ["search.epochs[1] is 2.5", "int"]),
        (dict(search__epochs="50"), ["search.epochs is '50'", "int"]),
        # Single fields.
        (dict(data__flip="maybe"), ["data.flip is 'maybe'", "auto, yes, no"]),
        (dict(data__crop="random"), ["data.crop is 'random'", "padded, resized"]),
        (dict(data__corrupt="ignore"), ["data.corrupt is 'ignore'", "error, skip"]),
        (dict(data__mean=(-0.5,), data__std=(0.2,)), ["data.mean[0] is -0.5", "at least 0"]),
        (dict(retrain__color_jitter=(-0.4, 0, 0, 0)), ["color_jitter[0] is -0.4", "at least 0"]),
        (dict(search__lr_schedule="step"), ["search.lr_schedule is 'step'", "cosine, linear"]),
        (dict(retrain__lr_schedule="step"), ["retrain.lr_schedule is 'step'"]),
        (dict(search__optimizer="adam"), ["search.optimizer is 'adam'", "sgd, adamw"]),
        (dict(retrain__optimizer="adam"), ["retrain.optimizer is 'adam'", "sgd, adamw"]),
        (
            dict(arch__name="gumbel", arch__options=dict(temperature=(1.0, 0.0))),
            ["arch.options.temperature[1] is 0.0", "more than 0"],
        ),
        (dict(arch__b1=1.0), ["arch.b1 is 1.0", "less than 1"]),
        (dict(arch__b2=2.0), ["arch.b2 is 2.0", "less than 1"]),
        (dict(search__momentum=1.0), ["search.momentum is 1.0", "less than 1"]),
        (dict(retrain__momentum=1.5), ["retrain.momentum is 1.5", "less than 1"]),
        (dict(retrain__label_smoothing=1.0), ["retrain.label_smoothing is 1.0", "less than 1"]),
        (dict(retrain__drop_path=1.0), ["retrain.drop_path is 1.0", "less than 1"]),
        (dict(search__train_fraction=0.0), ["search.train_fraction is 0.0", "more than 0"]),
        (dict(search__train_fraction=1), ["search.train_fraction is 1.0", "less than 1"]),
        (dict(search__channels=0), ["search.channels is 0", "at least 1"]),
        (dict(search__cells=0), ["search.cells is 0", "at least 1"]),
        (dict(search__batch_size=-8), ["search.batch_size is -8", "at least 1"]),
        (dict(retrain__batch_size=0), ["retrain.batch_size is 0", "at least 1"]),
        (dict(retrain__epochs=0), ["retrain.epochs is 0", "at least 1"]),
        (dict(seeds=0), ["seeds is 0", "at least 1"]),
        (dict(arch__lr=float("nan")), ["arch.lr is nan", "finite"]),
        (dict(arch__lr=float("inf")), ["arch.lr is inf", "finite"]),
        (dict(search__warmup_epochs=(10, -1)), ["search.warmup_epochs[1] is -1", "at least 0"]),
        (dict(search__epochs=(1, 0)), ["search.epochs[1] is 0", "at least 1"]),
        (dict(search__operations=(5, 0)), ["search.operations[1] is 0", "at least 1"]),
        (dict(search__partial_channels=(4, 0)), ["search.partial_channels[1] is 0"]),
        # Several fields together.
        (dict(seed=2**32 - 1, seeds=2), ["seed", "4294967296"]),
        (dict(seed=2**32), ["seed", "4294967296"]),
        (dict(data__crop="resized"), ["data.crop", "data.image_size"]),
        (dict(data__mean=(0.5,)), ["data.mean is (0.5,)", "data.std ()"]),
        (dict(data__std=(0.1, 0.2)), ["data.mean is ()", "data.std (0.1, 0.2)"]),
        (dict(data__mean=(0.5, 0.5), data__std=(0.2, 0.0)), ["data.std (0.2, 0.0)", "more than 0"]),
        (dict(data__mean=(123.7,), data__std=(58.4,)), ["123.7", "0..1", "divide"]),
        (dict(retrain__color_jitter=0.4), ["retrain.color_jitter is (0.4,)", "brightness"]),
        (dict(retrain__color_jitter=(0, 1.5, 0, 0)), ["color_jitter", "1.5", "up to 1"]),
        (dict(retrain__color_jitter=(0, 0, 0, 0.6)), ["color_jitter", "0.6", "up to 0.5"]),
        (
            dict(arch__name="gumbel", arch__options=dict(temperature=(10.0,))),
            ["temperature is (10.0,)", "two numbers"],
        ),
        (dict(search__ranked_batches=0), ["search.ranked_batches", "0", "at least 1"]),
        (dict(search__alpha_fraction=0.6), ["train_fraction is 0.5", "alpha_fraction 0.6"]),
        (dict(search__lr_warmup_epochs=100), ["search.lr_warmup_epochs is 100", "100 epochs"]),
        (dict(search__tuning_epochs=100), ["search.tuning_epochs is 100", "the 100 epochs"]),
        (dict(retrain__lr_warmup_epochs=200), ["retrain.lr_warmup_epochs is 200", "200 epochs"]),
        (dict(search__epochs=()), ["search.epochs has 0", "search.partial_channels has 2"]),
        (dict(search__epochs=(1, 2, 3)), ["search.epochs has 3", "search.partial_channels has 2"]),
        (dict(search__channels=18), ["search.partial_channels[0] is K = 4", "= 18"]),
        (
            dict(search__operations=(3, 5)),
            ["search.operations is (3, 5)", "expected no more in a stage"],
        ),
        (
            dict(search__partial_channels=(2, 4)),
            ["partial_channels is (2, 4)", "expected no more in a stage"],
        ),
        (dict(cost__target=1e6), ["cost.target is 1000000.0", "cost.name"]),
        (dict(cost__weight=1.0), ["cost.weight is 1.0", "cost.name"]),
    ],
)
def test_a_mistake_names_the_field_and_the_value(fields, words):
    message = refused(**fields)
    assert all(word in message for word in words), message


def test_a_target_of_the_cost_and_a_limit_of_the_retraining_exclude_each_other(module):
    message = refused(cost__name=module, cost__target=1e6, retrain__max_macs=1e6)
    assert "cost.target is 1000000.0" in message and "retrain.max_macs" in message


def test_a_search_without_stages_is_refused():
    names = ("epochs", "partial_channels", "operations", "warmup_epochs")
    assert "at least one stage" in refused(**{f"search__{name}": () for name in names})


@pytest.mark.parametrize("values", [3, None, "text"])
def test_a_config_that_is_no_mapping_is_refused(values):
    with pytest.raises(UserError, match=f"the config is {values!r}: expected a group of fields"):
        from_config_dict(values)


def test_fields_of_images_at_the_ends_of_their_ranges():
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


# Comparing two configs


def test_differences_name_the_field_and_both_values():
    old, new = changed(), changed(search__lr=0.5, seed=7, search__epochs=(1, 2))
    old, new = (to_dict(from_config_dict(values)) for values in (old, new))
    assert lib.differences(old, old) == {}
    assert lib.differences(old, new) == {
        "search.epochs": "search.epochs was [50, 50] and is [1, 2]",
        "search.lr": "search.lr was 0.025 and is 0.5",
        "seed": "seed was 0 and is 7",
    }


def test_where_things_are_is_no_difference():
    elsewhere = changed(data__dir="/data", table__file="t.csv", checkpoint="runs/x")
    assert lib.differences(changed(), elsewhere) == {}


def test_a_field_that_only_one_config_has_is_a_difference():
    old = changed()
    del old["retrain"]["cutout"]
    there = {"retrain.cutout": "retrain.cutout was not set and is 0"}
    assert lib.differences(old, changed()) == there
    assert set(lib.differences(changed(), old)) == {"retrain.cutout"}
