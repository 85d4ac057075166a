"""Command lines: values, options of components, and mistakes, each reported in one line."""

from pathlib import Path

import pytest
from absl import flags
from changed_config import MODULE

from drnas_jax import config as lib
from drnas_jax.errors import UserError
from drnas_jax.flags import parse

RECIPE = "from drnas_jax.config import defaults\n\n\ndef get_config(variant=''):\n"
BASE = "--config=base.py"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current directory: a recipe of the defaults, and modules of the user with options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base.py").write_text(f"{RECIPE}    return defaults()\n")
    for name in ("own", "other"):
        (tmp_path / f"{name}.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def package(here):
    """A package of the user, whose name is not used twice: the module stays imported."""
    name = f"package_{here.name}"
    (here / name).mkdir()
    (here / name / "own.py").write_text(MODULE)
    return name


def read(*argv):
    def define(values):
        flags.DEFINE_integer("n", 1, "number of the program", flag_values=values)

    return parse(["main", *argv], define)


def parsed(*fields):
    return read(BASE, *(f"--config.{field}" for field in fields))[0]


def refused(*argv):
    with pytest.raises(UserError) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Values


def test_the_config_the_programs_flags_and_the_rest():
    config, values, rest = read("first", BASE, "--n=3", "--config.seed=7", "second")
    assert (config.seed, values.n, rest) == (7, 3, ["first", "second"])
    assert read(BASE)[0].seed == 0  # nothing remains from the call before


def test_a_flag_may_come_before_the_config_and_in_two_words():
    config, values, rest = read("--config.seed", "7", "-n", "3", "-config", "base.py")
    assert (config.seed, values.n, rest) == (7, 3, [])


@pytest.mark.parametrize("text", ["(3,7)", "(3, 7)", "3,7", "[3,7]"])
def test_a_tuple(text):
    assert parsed(f"search.epochs={text}").search.epochs == (3, 7)


def test_a_tuple_of_one():
    single = [f"search.{name}=1" for name in ("epochs", "partial_channels", "warmup_epochs")]
    assert parsed(*single, "search.operations=(5,)").search.stages == (lib.Stage(1, 1, 5, 1),)


def test_numbers_bools_and_texts():
    config = parsed(
        "arch.lr=1e-2",
        "search.clip=5",
        "search.sync_batchnorm=true",
        "retrain.sync_batchnorm",
        "data.dir=a b",
        "seed=4294967295",
    )
    assert config.arch.lr == 0.01
    assert config.search.clip == 5.0
    assert config.search.sync_batchnorm is config.retrain.sync_batchnorm is True
    assert config.data.dir == "a b"
    assert config.seed == 2**32 - 1
    assert read(BASE, "--noconfig.compute.donate")[0].compute.donate is False


@pytest.mark.parametrize(
    "words",
    [
        ["--config.search.epochs=(3,7)", "--config.search.epochs=(1,2)"],
        ["--config.search.epochs=3", "--config.search.epochs", "1,2"],
        ["--config.search.epochs", "1", "second", "--config.search.epochs=(1,2)"],
    ],
)
def test_the_last_of_two_tuples_counts(words):
    # Would catch ml_collections joining them to one tuple of all the numbers.
    assert read(BASE, *words)[0].search.epochs == (1, 2)


def test_the_last_of_two_flags_counts(here):
    (here / "second.py").write_text(f"{RECIPE}    return dict(seeds=2)\n")
    twice = ["--n=1", "--n=2", "--config.seed=1", "--config.seed=2"]
    config, values, _ = read("--config=base.py", "--config=second.py", *twice)
    assert (config.seeds, config.seed, values.n) == (2, 2, 2)
    config, _, _ = read(BASE, "--config.compute.donate", "--noconfig.compute.donate")
    assert config.compute.donate is False


def test_a_file_of_flags(here):
    (here / "flags.txt").write_text("--config=base.py\n--config.seed=7\n--n=3\n")
    config, values, _ = read("--flagfile=flags.txt")
    assert (config.seed, values.n) == (7, 3)


# Options of components


@pytest.mark.parametrize(
    "name", ["own.py", "{here}/own.py", "{package}.own"], ids=["relative", "absolute", "dotted"]
)
def test_options_of_a_users_module(here, package, name):
    name = name.format(here=here, package=package)
    config = parsed(
        "space_options.patch=2",  # before its component: the order does not matter
        f"space={name}",
        "space_options.sizes=3",
        "space_options.sizes=(5,6,7)",
        "space_options.bias=false",
    )
    options = config.space_options
    assert (options.patch, options.sizes, options.bias) == (2, (5, 6, 7), False)
    assert options.scale == 1.0


@pytest.mark.parametrize("options", lib.OPTIONS)
def test_options_of_every_kind_of_component(options):
    # Would catch a kind whose options only a recipe can set.
    config = parsed(f"{lib.OPTIONS[options]}=own.py", f"{options}.scale=2")
    assert lib.plain(config) != lib.plain(parsed(f"{lib.OPTIONS[options]}=own.py"))
    assert "'scale': 2.0" in str(lib.plain(config))


def test_flags_change_single_options_of_a_recipe(here):
    text = f"{RECIPE}    config = defaults()\n    config.space = 'own.py'\n"
    (here / "recipe.py").write_text(
        f"{text}    config.space_options = dict(patch=2, pool='first')\n    return config\n"
    )
    config, _, _ = read("--config=recipe.py", "--config.space_options.patch=3")
    assert (config.space_options.patch, config.space_options.pool) == (3, "first")


def test_another_component_starts_from_its_own_defaults(here):
    # Would catch options of the recipe's component that stay for the one on the command line.
    text = f"{RECIPE}    config = defaults()\n    config.space = 'own.py'\n"
    (here / "recipe.py").write_text(
        f"{text}    config.space_options = dict(patch=2)\n    return config\n"
    )
    assert read("--config=recipe.py", "--config.space=other.py")[0].space_options.patch == 4
    assert read("--config=recipe.py", "--config.space=nasbench201")[0].space_options is None
    assert read("--config=recipe.py", "--config.space=own.py")[0].space_options.patch == 2


# Mistakes


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.seedd=1", ["'seedd'", "seed"]),
        ("--config.search.epoch=1", ["'search.epoch'", "search.epochs"]),
        ("--config.serch.epochs=1", ["'serch.epochs'", "search.epochs"]),
        ("--config.lr=1", ["'lr'", "arch.lr", "search.lr", "retrain.lr"]),
        ("--config.xyz=1", ["'xyz'", "seed", "space", "search", "retrain"]),
        ("--config.search.xyz=1", ["'search.xyz'", "search.lr", "search.channels"]),
        ("--config.seed.more=1", ["'seed.more'"]),
        ("--noconfig.seedd", ["'seedd'", "seed"]),
        ("--config.search.epochs[0]=1", ["'search.epochs[0]'", "search.epochs"]),
        ("--config.=1", ["''"]),
        ("--config.search={}", ["search is a group", "search.channels"]),
        ("--config.seed=soon", ["--config.seed=soon", "int"]),
        ("--config.seed=1.5", ["--config.seed=1.5", "int"]),
        ("--config.seed", ["--config.seed"]),
        ("--config.search.epochs", ["--config.search.epochs"]),
        ("--config.arch.lr=fast", ["--config.arch.lr=fast"]),
        ("--config.search.epochs=many", ["search.epochs[0] is 'many'", "int"]),
        ("--config.search.sync_batchnorm=maybe", ["--config.search.sync_batchnorm=maybe"]),
        ("--config.space_options.patch=2", ["'space_options.patch'", "no options"]),
        ("--config.space_options={}", ["'space_options'", "no options"]),
        ("--config.space=own", ["'own'", "nasbench201", ".py"]),
        ("--m=1", ["'m'", "--help"]),
        ("--n=x", ["--n=x"]),
        ("--flagfile=no/such", ["no/such"]),
    ],
)
def test_a_mistake_is_named(argument, words):
    message = refused(BASE, argument)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("field", "written"),
    [
        ("cost.target=600M", "write 600e6 for 600M"),
        ("cost.target=0.6 billion", "write 0.6e9 for 0.6 billion"),
        ("cost.targets=(300M,600M)", "write 300e6 for 300M"),
        ("cost.targets=150k", "write 150e3 for 150k"),
        ("search.batch_size=1.5k", "write 1500 for 1.5k"),
        ("search.epochs=1k", "write 1000 for 1k"),
        ("arch.lr=1,5", "give another value"),
    ],
)
def test_a_number_with_a_suffix_is_refused_with_the_way_to_write_it(field, written):
    # Would catch advice that is refused in turn, such as an exponent for an int.
    message = refused(BASE, f"--config.{field}")
    name, _, value = field.partition("=")
    assert name in message and value in message
    assert written in message


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("pach=2", ["'space_options.pach'", "space_options.patch"]),
        ("xyz=2", ["patch", "scale", "sizes", "pool", "bias"]),
        ("patch=big", ["--config.space_options.patch=big", "int"]),
        ("patch=0", ["space_options.patch is 0", "at least 1"]),
        ("patch=7", ["space_options", "expected another number"]),
    ],
)
def test_a_wrong_option_is_named(option, words):
    message = refused(BASE, "--config.space=own.py", f"--config.space_options.{option}")
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["no/such.py", "no/such.py:smoke", ".", "", "base", "base.txt"])
def test_a_config_that_is_no_file_is_refused(here, name):
    (here / "base.txt").touch()
    message = refused(f"--config={name}", "--config.seed=1")
    assert repr(name) in message and "--config=configs/digits.py" in message


@pytest.mark.parametrize("argv", [["--n=3"], ["--config"]])
def test_no_config(argv):
    assert "--config" in refused(*argv)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = (", ["broken.py, line 1", "SyntaxError"]),
        ("\nimport no_such_module", ["broken.py, line 2", "No module named 'no_such_module'"]),
        ("def get_config():\n    raise ValueError('no\\nluck')", ["line 2", "ValueError: no luck"]),
        (
            f"{RECIPE}    config = defaults()\n    config.sed = 1",
            ["'sed' in line 6", "broken.py", "seed"],
        ),
        (f"{RECIPE}    defaults().serach.epochs = 3", ["'serach' in line 5", "search"]),
        (
            f"{RECIPE}    defaults().search['epoch']",
            ["'epoch' in line 5", "search.epochs, retrain."],
        ),
        (
            f"{RECIPE}    defaults().retrain.update(dict(epoch=3))",
            ["'epoch' in line 5", "search.epochs, retrain.epochs"],
        ),
        (
            f"{RECIPE}    defaults().update_from_flattened_dict({{'serach.lr': 3}})",
            ["'serach.lr' in line 5", "arch.lr, search.lr, retrain.lr"],
        ),
        (f"{RECIPE}    defaults().xyzzy = 1", ["'xyzzy' in line 5", "--help"]),
        (f"{RECIPE}    dict(a=1)['b']", ["line 5", "KeyError: 'b'"]),  # no field
        (
            f"{RECIPE}    defaults().cost.target = '600M'",
            ["target in line 5", "is '600M': expected float; write 600e6 for 600M"],
        ),
        (f"{RECIPE}    defaults().seed = 1.5", ["field seed in line 5", "is 1.5: expected int"]),
        (f"{RECIPE}    defaults().search = 3", ["search in line 5", "expected a group of fields"]),
        (f"{RECIPE}    return dict(sed=1)", ["'sed'", "seed"]),
        (f"{RECIPE}    return dict(seed='1')", ["seed is '1'"]),
        (f"{RECIPE}    return 3", ["the config is 3"]),
        (f"{RECIPE}    return None", ["the config is None"]),
        ("x = 3", ["broken.py", "get_config"]),
        ("get_config = 3", ["broken.py", "get_config"]),
        ("def get_config(variant): return variant", ["broken.py", "needs a variant"]),
    ],
)
def test_a_recipe_with_a_mistake_is_named_with_its_line(here, text, words):
    (here / "broken.py").write_text(text)
    message = refused("--config=broken.py")
    assert all(word in message for word in words), message


def test_a_recipe_without_variants_refuses_one(here):
    (here / "single.py").write_text("def get_config(): return {}")
    assert "'single.py:large'" in refused("--config=single.py:large")
    assert read("--config=single.py")[0] == lib.from_config_dict({})


def test_an_unknown_variant_is_refused_with_the_choices():
    assert "'large': choose one of full, smoke" in refused("--config=configs/digits.py:large")


def test_a_bug_of_ours_is_not_reported_as_a_mistake(monkeypatch):
    # Would catch an `except` around our own code that calls every error an unknown field.
    def broken(config):
        raise LookupError("ours")

    with monkeypatch.context() as patch:
        patch.setattr(lib, "from_config_dict", broken)
        with pytest.raises(LookupError, match="ours"):
            read(BASE)
    monkeypatch.setattr(
        lib.conversion, "OPTIONS", None
    )  # breaks `defaults`, which the recipe calls
    with pytest.raises(TypeError, match="not iterable"):
        read(BASE)


# Recipes and help


def test_a_bundled_recipe_is_found_from_any_directory(here, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    expected = read("--config=configs/digits.py:smoke")[0]
    monkeypatch.chdir(here)
    assert read("--config=configs/digits.py:smoke")[0] == expected
    assert read("--config", "configs/digits.py:smoke")[0] == expected
    assert "configs/digit.py" in refused("--config=configs/digit.py")
    (here / "configs").mkdir()
    (here / "configs" / "digits.py").write_text("x = (")  # the user's own comes first
    assert "digits.py, line 1" in refused("--config=configs/digits.py")


@pytest.mark.parametrize("argv", [["--help"], [BASE, "--config.seed=1", "-help"]])
def test_help_lists_every_field_with_its_meaning_and_the_programs_flags(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        read(*argv)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name, field in lib.schema():
        assert f"\n  {name}" in printed
        assert field.metadata["meaning"] in printed
    assert "number of the program" in printed
    assert "dirichlet, gdas, gumbel, pc_darts, sdarts, softmax" in printed
