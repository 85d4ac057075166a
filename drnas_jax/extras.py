"""Imports of optional packages, each of which an extra of this package installs."""

import importlib
from types import ModuleType

from drnas_jax.errors import UserError


def import_extra(package: str, extra: str, user: str) -> ModuleType:
    """Imports an optional package.

    Args:
      package: Name under which it is imported.
      extra: Extra that installs it, as in `pip install 'drnas_jax[EXTRA]'`.
      user: What needs it, for the error message, for example `metrics.writers 'wandb'`.

    Raises:
      UserError: It is not installed, or it fails to import.
    """
    try:
        module = importlib.import_module(package)
        if getattr(module, "__file__", None):
            return module
        reason = f"{next(iter(module.__path__))} is only a folder"  # W&B leaves one of its name
    except ImportError as error:
        reason = " ".join(str(error).split())
    raise UserError(
        f"{user} needs the package {package} ({reason}): pip install 'drnas_jax[{extra}]'"
    )
