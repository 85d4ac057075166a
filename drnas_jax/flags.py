"""Command lines with a config: `--config=FILE[:VARIANT] --config.FIELD=VALUE`."""

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from drnas_jax import configs
from drnas_jax.config import Config, from_config_dict
from drnas_jax.errors import UserError

_CONFIG_HELP = """\
  --config: FILE or FILE:VARIANT, for instance configs/digits.py:smoke
  --config.FIELD: sets a field of it; configs/base.py explains all
"""


def parse(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> tuple[Config, flags.FlagValues, list[str]]:
    """Parses a command line.

    Args:
      argv: with the program's name first. A recipe of ours, `configs/NAME.py`, is found from any
        folder.
      define: defines the program's own flags on a FlagValues.

    Returns:
      The frozen config, all flags, and the arguments that are not flags.

    Raises:
      UserError: an unknown flag or field, a value of the wrong type, or no config.
    """
    argv, values = _found(argv), flags.FlagValues()
    try:
        flags.DEFINE_bool("help", False, "show this help", flag_values=values)
        config_flags.DEFINE_config_file(
            "config",
            None,
            "config file, FILE or FILE:VARIANT",
            flag_values=values,
            sys_argv=argv,
        )
        define(values)
        rest = values(argv)[1:]
        if values.help:
            print(_CONFIG_HELP + (values.main_module_help() or values.get_help()))
            raise SystemExit(0)
        if values.config is None:
            raise UserError("no config: give --config=FILE, for instance configs/digits.py")
        return from_config_dict(values.config), values, rest
    except UserError:
        raise
    except (AttributeError, LookupError) as error:
        raise UserError(
            "unknown config field, or a fault in the config file: "
            f"{_line(error.args[0] if error.args else repr(error))} (configs/base.py lists all)"
        ) from error
    except OSError as error:
        reason = _line(str(error.__cause__ or error).splitlines()[-1])
        raise UserError(
            f"the config cannot be read ({reason}): give --config=FILE, for instance "
            "configs/digits.py"
        ) from error
    except (SyntaxError, ImportError) as error:
        raise UserError(f"the config file cannot be loaded ({_line(error)}): fix it") from error
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"{_line(error)} (--help lists all)") from error
    except (flags.Error, ValueError) as error:
        raise UserError(_line(error)) from error


def _found(argv: Sequence[str]) -> list[str]:
    """The command line with the path of a recipe that came with the package, where it needs one."""

    def path(match: re.Match[str]) -> str:
        flag, name = match.groups()
        ours = [
            path for folder in configs.__path__ if (path := Path(folder, Path(name).name)).exists()
        ]
        return match[0] if Path(name).exists() or not ours else f"{flag}{ours[0]}"

    return [re.sub(r"^(--config=|)(configs/\w+\.py)", path, word) for word in argv]


def _line(error: object) -> str:
    """An error's message as one line."""
    text = str(error)
    if text[:2] == "'\\":  # ml_collections quotes a message that holds a quoted name
        text = ast.literal_eval(text)
    if "Traceback" in text:  # of a config file's own error: its last line says what
        text = text.strip().splitlines()[-1].removeprefix("drnas_jax.errors.UserError: ")
    return " ".join(text.split())
