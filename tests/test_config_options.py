"""Components that a config names, and their options."""

import json
import operator

import pytest
from changed_config import MODULE, changed, refused

from drnas_jax import config as lib
from drnas_jax.config import component_names, defaults, from_config_dict, to_dict


@pytest.fixture
def module(tmp_path):
    """The path of a module of the user with options."""
    (tmp_path / "own.py").write_text(MODULE)
    return str(tmp_path / "own.py")


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
        (dict(pach=2), ["'space_options.pach'", "space_options.patch, space_options.scale"]),
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
