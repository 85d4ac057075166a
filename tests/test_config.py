"""Configs: what is accepted, frozen and compared; each mistake names its field."""

import ast
import dataclasses
import importlib
import itertools
import json
import operator
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from drnas_jax import components
from drnas_jax import config as lib
from drnas_jax.config import (
    Config,
    Stage,
    component_names,
    defaults,
    freeze,
    from_config_dict,
    to_dict,
)
from drnas_jax.configs import nasbench201
from drnas_jax.errors import UserError

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem[0] != "_")
VARIANTS = {
    "cifar10": [
        "cifar100",
        "cpu",
        *(f"{size},s{n}" for size in ("cpu", "smoke") for n in range(1, 5)),
    ],
    "fashion_mnist": ["cpu"],
    "nasbench_macro": ["cpu"],
    "nasbench201": [
        ",".join(words)
        for words in itertools.product(nasbench201.SIZES, nasbench201.METHODS)
        if words[0] != "smoke"
    ],
}
MODULE = """
import dataclasses

from drnas_jax.config import at_least, choices, field

@dataclasses.dataclass(frozen=True)
class Options:
    patch: int = field(4, "Side of a patch.", at_least(1))
    scale: float = 1
    sizes: tuple[int, ...] = field((1, 2), "Sizes.", at_least(1))
    pool: str = field("mean", "Pooling.", choices("mean", "first"))
    bias: bool = True

    def __post_init__(self):
        if self.patch == 7:
            raise ValueError("patch is 7:\\nexpected another number")

def create(options):
    return options
"""


def changed(**fields):
    """Returns the defaults with some fields set, `search__lr` for search.lr."""
    values = defaults().to_dict()
    for name, value in fields.items():
        *groups, last = name.split("__")
        group = values
        for key in groups:
            group = group[key]
        group[last] = value
    return values


def refused(**fields):
    """Returns the message of the error for some fields, which must be one line."""
    with pytest.raises(UserError) as caught:
        from_config_dict(changed(**fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


# Components and their options


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(space="drats"), ["unknown space 'drats'", "darts_s4, macro, nasbench201", ".py"]),
        (dict(arch__name="beta"), ["unknown arch.name 'beta'", "dirichlet, gdas"]),
        (dict(table__name="nowhere"), ["unknown table.name 'nowhere'", "nasbench201"]),
        (dict(space="no/such.py"), ["space is 'no/such.py'", "no such file"]),
        (dict(data__name="no.such"), ["data.name is 'no.such'", "no such module"]),
        (dict(space=""), ["unknown space ''"]),
    ],
)
def test_a_wrong_component_is_refused(fields, words):
    message = refused(**fields)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012", "cmaterdb/bangla:1.0.0", "my_set:3.*"])
def test_any_word_may_be_a_data_set_of_tfds(name):
    assert from_config_dict(changed(data__name=name)).data.name == name


@pytest.mark.parametrize("name", ["l2", "kl", "none"])
def test_the_penalties(name):
    assert from_config_dict(changed(arch__regulariser=name)).arch.regulariser == name


@pytest.mark.parametrize("field", [name.replace(".", "__") for name in lib.COMPONENTS])
def test_every_kind_of_component_takes_a_users_module_with_options(module, field):
    # Would catch a component whose options are never checked, or stored in another field.
    owner = field.replace("__", ".")
    name = next(name for name in lib.OPTIONS if lib.OPTIONS[name] == owner)
    config = from_config_dict(changed(**{field: module, name.replace(".", "__"): {"patch": 2}}))
    options = operator.attrgetter(name)(config)
    assert (options.patch, options.scale, options.sizes) == (2, 1.0, (1, 2))
    assert hash(config) == hash(from_config_dict(to_dict(config)))
    assert from_config_dict(to_dict(config)) == config
    assert config != from_config_dict(changed(**{field: module}))


def test_options_are_written_to_json(module):
    config = from_config_dict(changed(space=module, space_options=dict(sizes=[3])))
    expected = dict(patch=4, scale=1.0, sizes=[3], pool="mean", bias=True)
    assert json.loads(json.dumps(to_dict(config)))["space_options"] == expected
    assert to_dict(from_config_dict({}))["space_options"] == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(pach=2), ["'space_options.pach'", "space_options.patch"]),
        (dict(xyz=2), ["patch", "scale", "sizes", "pool", "bias"]),
        (dict(patch="2"), ["space_options.patch is '2'", "int"]),
        (dict(patch=0), ["space_options.patch is 0", "at least 1"]),
        (dict(sizes=(1, 0)), ["space_options.sizes[1] is 0", "at least 1"]),
        (dict(pool="max"), ["space_options.pool is 'max'", "mean, first"]),
        (dict(scale=float("inf")), ["space_options.scale is inf", "finite"]),
        (dict(patch=7), ["space_options", "patch is 7: expected another number"]),
        (3, ["space_options is 3", "group"]),
    ],
)
def test_a_wrong_option_is_refused_like_any_field(module, options, words):
    message = refused(space=module, space_options=options)
    assert all(word in message for word in words), message


def test_options_of_a_component_without_options_are_refused():
    message = refused(space="nasbench201", space_options=dict(patch=2))
    assert "'space_options.patch'" in message and "no options" in message
    message = refused(search__stopping_options=dict(window=5))  # no rule at all
    assert "'search.stopping_options.window'" in message and "no options" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("patch: int", ["space_options.patch", "no default"]),
        ("patch: object = 3", ["space_options.patch", "type", "tuple[int, ...]"]),
        ("patch: int = 'four'", ["space_options.patch is 'four'", "int"]),
        ("patch: dict = dataclasses.field(default_factory=dict)", ["space_options.patch", "type"]),
    ],
)
def test_a_field_of_options_that_flags_could_not_set_is_refused(tmp_path, line, words):
    head = "import dataclasses\n\n@dataclasses.dataclass(frozen=True)\nclass Options:\n    "
    (tmp_path / "own.py").write_text(f"{head}{line}\n\ncreate = print\n")
    message = refused(space=str(tmp_path / "own.py"))
    assert all(word in message for word in words), message


def test_a_bug_in_a_users_own_check_is_not_hidden(tmp_path):
    # Would catch a broad `except` that reports a bug as a wrong value.
    text = MODULE.replace("self.patch == 7", "self.no_such_field")
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(AttributeError, match="no_such_field"):
        from_config_dict(changed(space=str(tmp_path / "own.py")))


def test_a_recipe_sets_options_in_one_of_three_ways(module):
    ways = []
    for number in range(3):
        config = defaults()
        config.space = module
        if number == 0:
            config.space_options = dict(patch=2)
        elif number == 1:
            config.space_options.patch = 2
        else:
            config.update(dict(space_options=dict(patch=2)))
        ways.append(from_config_dict(config))
    assert ways[0].space_options.patch == 2
    assert ways[0] == ways[1] == ways[2]


def test_the_components_of_a_run():
    names = component_names(from_config_dict(changed(arch__regulariser="none")))
    assert names["space"] == "nasbench201"
    assert names["table.name"] == "nasbench201"  # the one with the space's name
    assert not {"search.stopping", "cost.name", "arch.regulariser"} & set(names)
    macro = component_names(from_config_dict(changed(space="macro")))
    assert macro["table.name"] == "nasbench_macro"  # the one whose SPACE is the space's name
    assert "table.name" not in component_names(from_config_dict(changed(space="darts")))


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


# The recipes


def test_there_are_recipes():
    assert {
        "cifar10",
        "digits",
        "fashion_mnist",
        "imagenet",
        "nasbench201",
        "nasbench_macro",
    } <= set(RECIPES)


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name in RECIPES for variant in ["", "smoke", *VARIANTS.get(name, [])]],
)
def test_every_recipe_and_variant_is_a_valid_config(name, variant):
    values = importlib.import_module(f"drnas_jax.configs.{name}").get_config(variant)
    assert isinstance(values, ConfigDict) and values.is_locked
    assert isinstance(from_config_dict(values), Config)


@pytest.mark.parametrize("size", nasbench201.SIZES)
@pytest.mark.parametrize("method", nasbench201.METHODS)
def test_a_method_changes_only_what_defines_it(size, method):
    # All methods of a size search the same supernet on the same images for as many epochs.
    found = from_config_dict(nasbench201.get_config(f"{method},{size}"))
    plain = from_config_dict(nasbench201.get_config(f"{size},plain"))
    changed = lib.differences(to_dict(plain), to_dict(found))
    changes = {name for name in changed if "options." not in name}
    assert changes <= {
        "arch.name", "arch.regulariser", "search.selection", "search.partial_channels",
        "search.operations", "search.epochs", "search.warmup_epochs", "search.channels",
        "search.stopping", "search.tuning_epochs", "search.tuning_lr",
        *(("genotype", "seeds", "retrain.train_fraction", "retrain.channels", "retrain.cells",
           "retrain.epochs") if method == "random_search" else ()),
    }  # fmt: skip
    dirichlet = ("plain", "progressive", "kl", "random_search")
    assert ("arch.name" in changes) == (method not in dirichlet)
    assert sum(found.search.warmup_epochs) <= sum(found.search.epochs)
    assert sum(found.search.epochs) >= sum(plain.search.epochs)


@pytest.mark.parametrize("variant", ["darts,snas", "cpu,smoke", "cpu,cpu"])
def test_two_methods_or_sizes_are_refused(variant):
    with pytest.raises(UserError, match=f"'{variant}' names two sizes or two methods"):
        nasbench201.get_config(variant)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_variant_is_refused_with_the_choices(name):
    with pytest.raises(UserError, match="'nothing': choose one of .*smoke"):
        importlib.import_module(f"drnas_jax.configs.{name}").get_config("nothing")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_its_command_its_time_its_result_and_its_variants(name):
    doc = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())) or ""
    assert f"python -m drnas_jax.main --config=configs/{name}.py --workdir=" in doc
    assert "minutes" in doc and "CPU cores" in doc
    assert "accuracy" in doc or "error" in doc
    words = {word for variant in VARIANTS.get(name, []) for word in variant.split(",")}
    for word in {"smoke", *words} - {"full"}:
        assert word in doc
