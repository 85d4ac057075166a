"""Command lines with a config: `--config=FILE[:VARIANT] --config.FIELD=VALUE`."""

import inspect
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from drnas_jax import components, config, configs
from drnas_jax.config import Config
from drnas_jax.errors import UserError

# How ml_collections words what is wrong with a field.
_WRONG_TYPE = re.compile(
    r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '(\w+)'> "
    r"and cannot be casted to type <class '(?:[\w.]+\.)?(\w+)'>"
)
_UNKNOWN_KEY = re.compile(r"""Key "([\w.]+)" (?:does not exist|cannot be)|'(\w+)'(?:\nDid|$)""")
_CONFIG_DICT = inspect.getfile(config_dict.ConfigDict)
_EXAMPLE = "give --config=FILE[:VARIANT], for instance --config=configs/digits.py"


def parse(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> tuple[Config, flags.FlagValues, list[str]]:
    """Parses a command line. If a flag is given twice, the last one counts.

    Args:
      argv: Words of the command line, with the program's name first. A bundled recipe,
        `configs/NAME.py`, is found from any directory.
      define: Function that defines the program's own flags on a FlagValues.

    Returns:
      The frozen config, all flags, and the arguments that are not flags.

    Raises:
      UserError: There is no config, or the recipe fails, or a flag or a field is unknown or has a
        wrong value.
    """
    values = flags.FlagValues()
    define(values)
    words, complete = list(argv[1:]), dict[str, Any]()
    try:
        words = values.read_flags_from_files(words, force_gnu=False)
        if {"--help", "-help", "-h"} & set(words):
            print(_help(values))
            raise SystemExit(0)
        files, words = _take(words, "config")
        if not files:
            raise UserError(f"no config: {_EXAMPLE}")
        complete = _complete(_load_recipe(files[-1]), words)
        words = [argv[0], *_checked(words, complete)]
        config_flags.DEFINE_config_dict(
            "config", config.to_config_dict(complete), flag_values=values, sys_argv=words
        )
        rest = values(words)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"{_line(error)} (--help lists all)") from error
    except flags.Error as error:
        advice = _advice(words, complete)
        raise UserError(f"{_line(error).rstrip('.')}: {advice}") from error
    return config.from_config_dict(values.config), values, rest


def _load_recipe(text: str) -> Mapping[str, Any]:
    """Calls `get_config` of a recipe, FILE or FILE:VARIANT."""
    name, _, variant = text.partition(":")
    file = Path(name).expanduser()
    if not file.exists() and re.fullmatch(r"configs/\w+\.py", name):
        bundled = (Path(folder, file.name) for folder in configs.__path__)
        file = next((path for path in bundled if path.exists()), file)
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"--config is {text!r}, and {name!r} is not a .py file: {_EXAMPLE}")
    arguments = (variant,) if variant else ()
    try:
        get_config = getattr(components.import_file(file), "get_config", None)
        if not callable(get_config):
            raise UserError(f"the recipe {name} has no function `get_config`: add it")
        signature = inspect.signature(get_config)
        try:
            signature.bind(*arguments)
        except TypeError:
            what = "has no variants" if variant else "needs a variant"
            raise UserError(f"--config is {text!r}, but {name} {what}: {_EXAMPLE}") from None
        return get_config(*arguments)
    except UserError:
        raise
    except Exception as error:  # whatever the user's recipe raises
        if components.is_bug_of_ours(error):
            raise
        _check_fields(error)
        raise UserError(f"the recipe {name} fails: {components.failure(error)}") from error


def _check_fields(error: Exception) -> None:
    """Raises UserError if a recipe failed since a field is unknown, or has another type.

    ml_collections raises errors of Python's types, so only their texts say what they are about.
    """
    file, line = components.place(error)
    where, inner = f"in line {line} of {file}", error
    while inner.args and isinstance(inner.args[0], Exception):  # an AttributeError of a KeyError
        inner = inner.args[0]
    text = str(inner.args[0]) if inner.args else ""
    if match := _WRONG_TYPE.match(text):
        name, value, given, kind = match.groups()
        expected = {"ConfigDict": "a group of fields"}.get(kind, kind)
        if advice := config.written_out(value, int if kind == "int" else float):
            expected = f"{expected}; {advice}"
        shown = repr(value) if given == "str" else value
        raise UserError(f"config field {name} {where} is {shown}: expected {expected}") from error
    library = traceback.extract_tb(error.__traceback__)[-1].filename == _CONFIG_DICT
    if library and (match := _UNKNOWN_KEY.match(text)):
        key = match[1] or match[2]
        choice = "one of those that --help lists"
        if near := config.near_fields(key):
            choice = f"one of {', '.join(near)}"
        raise UserError(f"unknown config field {key!r} {where}: choose {choice}") from error


def _complete(recipe: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Returns all fields of a recipe, with the options of the components that the words name.

    Options that the recipe sets belong to the component that it names: another one starts from its
    own defaults.
    """
    values = config.plain(config.build(recipe))
    for name, component in config.COMPONENTS.items():
        group, _, last = name.rpartition(".")
        owner = values[group] if group else values
        given, _ = _take(words, f"config.{name}")
        if given and given[-1] != owner[last]:
            owner.update({last: given[-1], component.options: {}})
    return config.plain(config.build(values))


def _checked(words: Sequence[str], complete: Mapping[str, Any]) -> list[str]:
    """Checks the names of the fields, and keeps the last of several values for a tuple.

    ml_collections would join them.
    """
    known = dict(config.leaves(complete))
    for word in words:
        match = re.match(r"--?(?:no)?config\.([^=]*)", word)
        if match and match[1] not in known:
            raise config.unknown_field(match[1], known)
    kept = list(words)
    for name in (name for name, value in known.items() if isinstance(value, tuple)):
        given, others = _take(kept, f"config.{name}")
        if given:
            kept = [f"--config.{name}={given[-1]}", *others]
    return kept


def _advice(words: Sequence[str], complete: Mapping[str, Any]) -> str:
    """Returns what to do after a value was refused."""
    known = dict(config.leaves(complete))
    for word in words:
        name, _, value = word.partition("=")
        field = known.get(name.lstrip("-").removeprefix("config."))
        first = field[0] if isinstance(field, tuple) and field else field
        kind = int if isinstance(first, int) else float
        if isinstance(first, int | float | tuple) and (text := config.written_out(value, kind)):
            return text
    return "give another value, as --help says"


def _take(words: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """Splits the words of a command line into the values given to one flag and all other words."""
    given, others, rest = [], [], iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in (f"--{flag}", f"-{flag}"):
            others.append(word)
        elif equals:
            given.append(value)
        elif (following := next(rest, None)) is not None:
            given.append(following)
        else:
            raise UserError(f"--{flag} has no value: give --{flag}=VALUE")
    return given, others


def _help(values: flags.FlagValues) -> str:
    """Lists all fields of the config, by group, and the flags of a program."""
    lines = [
        "--config=FILE or --config=FILE:VARIANT, for instance --config=configs/digits.py:smoke"
    ]
    lines += ["", "Fields, set by --config.FIELD=VALUE (in brackets: the default):"]
    group = ""
    for name, field in config.schema():
        if (above := name.rpartition(".")[0]) != group:
            group = above
            lines += ["", f"{(config.GROUPS[group].__doc__ or '').splitlines()[0]}"]
        line = f"  {name} [{field.default!r}]: {field.metadata['meaning']}"
        if name in config.OPTIONS:
            line = f"  {name}.OPTION: {field.metadata['meaning']}"
        if name in config.COMPONENTS:
            bundled = components.names(config.COMPONENTS[name].kind)
            line += f" Bundled: {', '.join(bundled)}." if bundled else ""
        lines.append(line)
    return "\n".join([*lines, "", values.get_help()])


def _line(error: object) -> str:
    return " ".join(str(error).split())
