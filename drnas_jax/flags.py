"""Command lines with a config: `--config=FILE[:VARIANT] --config.FIELD=VALUE`."""

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
    flags.DEFINE_bool("help", False, "show this help", flag_values=values)
    config_flags.DEFINE_config_file(
        "config", None, "config file, FILE or FILE:VARIANT", flag_values=values, sys_argv=list(argv)
    )
    define(values)
    try:
        rest = values(list(argv))[1:]
        if values.help:
            print(values.main_module_help() or values.get_help())
            raise SystemExit(0)
        if values.config is None:
            raise UserError("no config: give --config=FILE, for instance configs/digits.py")
        return from_config_dict(values.config), values, rest
    except AttributeError as error:
        name = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        name = " ".join(name.splitlines())
        raise UserError(f"unknown config field {name} (configs/base.py lists all)") from error
    except (flags.Error, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # A config file's own error is the last line of the traceback that the message holds.
        text = lines[-1] if any("Traceback" in line for line in lines) else " ".join(lines)
        raise UserError(text) from error
