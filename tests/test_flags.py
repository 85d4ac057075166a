"""Command lines: every mistake is one line that names what was typed."""

from pathlib import Path

import pytest
from absl import flags

from drnas_jax.errors import UserError
from drnas_jax.flags import parse

ROOT = Path(__file__).parents[1]
BASE = f"--config={ROOT / 'configs/base.py'}"


def read(*argv):
    return parse(
        ["main", *argv], lambda values: flags.DEFINE_integer("n", 1, "", flag_values=values)
    )


def refused(*argv):
    with pytest.raises(UserError) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_config_flags_and_the_rest():
    config, values, rest = read("first", BASE, "--n=3", "--config.seed=7", "second")
    assert (config.seed, values.n, rest) == (7, 3, ["first", "second"])
    assert read(BASE)[0].seed == 0  # nothing stays from the call before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.seedd=1", "the config file: 'seedd' Did you mean \"seed\""),
        ("--config.search.epoch=1", "the config file: 'epoch' Did you mean \"epochs\""),
        ("--config.serch.epochs=1", "the config file: 'serch' Did you mean \"search\""),
        ("--config.seed.more=1", "seed.more"),
        ("--config.search.epochs[0]=1", "search.epochs[0]"),
        ("--config.search.epochs[9]=1", "unknown config field"),
        ("--config.se ed=1", "'se ed'"),
        ("--config.=1", "Could not parse ''"),
        ("--config.seed=soon", "--config.seed=soon: invalid literal for int()"),
        ("--config.seed=1.5", "--config.seed=1.5: invalid literal for int()"),
        ("--config.seed", "Missing value for flag --config.seed"),
        ("--config.arch.lr=fast", "--config.arch.lr=fast: "),
        ("--config.search.epochs=many", "search.epochs is 'many': expected int"),
        ("--config.search.sync_batchnorm=maybe", "--config.search.sync_batchnorm=maybe: "),
        ("--config.search=3", "--config.search=3: "),
        ("--m=1", "Unknown command line flag 'm' (--help lists all)"),
        ("--n=x", "--n=x: "),
        ("--flagfile=no/such", "no/such"),
    ],
)
def test_a_mistake_is_named(argument, message):
    assert message in refused(BASE, argument)


def test_a_field_before_the_config():
    assert "--config.seed=1" in refused("--config.seed=1", BASE)


def test_a_group_after_its_field():
    assert "--config.search" in refused(BASE, "--config.search.cells=1", "--config.search={}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("no/such.py", "No such file or directory: 'no/such.py'"),
        ("no/such.py:smoke", "No such file or directory: 'no/such.py'"),
        (".", "Is a directory: '.'"),
        ("", "empty"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--config.seed=1"]])
def test_a_config_that_is_not_there(config, message, more):
    line = refused(f"--config={config}", *more)
    assert message in line
    assert "give --config=FILE, for instance configs/digits.py" in line


def test_no_config():
    assert "give --config=FILE" in refused("--n=3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "broken.py, line 1"),
        ("import no_such_module", "No module named 'no_such_module'): fix it"),
        ("def get_config(): raise ValueError('no luck')", "ValueError: no luck"),
        ("def get_config(): return {'seed': 1}", "config field arch is missing"),
        ("def get_config(): return 3", "holds 3: expected a group"),
        ("def get_config(): return None", "no config"),
        (
            "from drnas_jax.configs import base\nget_config = base.get_config",
            "takes 0 positional arguments",
        ),
        (
            "from drnas_jax.errors import check_choice\n"
            "def get_config(variant): check_choice('variant', variant, ('big', 'small'))",
            "unknown variant 'large': choose one of big, small",
        ),
    ],
)
def test_a_config_file_with_a_mistake(tmp_path, text, message):
    file = tmp_path / "broken.py"
    file.write_text(text)
    variant = ":large" if "variant" in text or "base" in text else ""
    assert message in refused(f"--config={file}{variant}")


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    here, _, _ = read("--config=configs/digits.py:smoke")
    monkeypatch.chdir(tmp_path)
    assert read("--config=configs/digits.py:smoke")[0] == here
    assert read("--config", "configs/digits.py:smoke")[0] == here
    assert "configs/digit.py" in refused("--config=configs/digit.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("x = (")  # the user's own comes first
    assert "digits.py, line 1" in refused("--config=configs/digits.py")


def test_help_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    assert "--config: " in capsys.readouterr().out
