"""Command lines with a config: `--config=FILE[:VARIANT] --config.FIELD=VALUE`."""

import ast
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from drnas_jax.config import Config, from_config_dict
from drnas_jax.errors import UserError


def parse(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> tuple[Config, flags.FlagValues, list[str]]:
    """Parses a command line.

    Args:
      argv: with the program's name first.
      define: defines the program's own flags on a FlagValues.

    Returns:
      The frozen config, all flags, and the arguments that are not flags.

    Raises:
      UserError: an unknown flag or field, a value of the wrong type, or no config.
    """
    values = flags.FlagValues()
    try:
        flags.DEFINE_bool("help", False, "show this help", flag_values=values)
        config_flags.DEFINE_config_file(
            "config",
            None,
            "config file, FILE or FILE:VARIANT",
            flag_values=values,
            sys_argv=list(argv),
        )
        define(values)
        rest = values(list(argv))[1:]
        if values.help:
            print(values.main_module_help() or values.get_help())
            raise SystemExit(0)
        if values.config is None:
            raise UserError("no config: give --config=FILE, for instance configs/digits.py")
        return from_config_dict(values.config), values, rest
    except UserError:
        raise
    except (AttributeError, LookupError) as error:
        raise UserError(
            f"unknown config field: {_line(error.args[0])} (configs/base.py lists all)"
        ) from error
    except OSError as error:
        reason = _line(str(error.__cause__ or error).splitlines()[-1])
        raise UserError(
            f"the config can not be read ({reason}): give --config=FILE, for instance "
            "configs/digits.py"
        ) from error
    except (SyntaxError, ImportError) as error:
        raise UserError(
            f"the config file can not be loaded ({_line(error)}): mend it, or run the command "
            "where configs/ lies"
        ) from error
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"{_line(error)} (--help lists all)") from error
    except (flags.Error, ValueError) as error:
        raise UserError(_line(error)) from error


def _line(error: object) -> str:
    """An error's message as one line."""
    text = str(error)
    if text[:2] == "'\\":  # ml_collections quotes a message that holds a quoted name
        text = ast.literal_eval(text)
    if "Traceback" in text:  # of a config file's own error: its last line says what
        text = text.strip().splitlines()[-1].removeprefix("drnas_jax.errors.UserError: ")
    return " ".join(text.split())
