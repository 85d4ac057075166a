"""Look a component up by its file's name: a new one is one new file, registered nowhere."""

import importlib
import pkgutil
from types import ModuleType

from drnas_jax.errors import check_choice


def names(package: ModuleType) -> list[str]:
    """The public modules of a package such as `drnas_jax.distributions`, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_") and name != "base")


def find(package: ModuleType, what: str, name: str) -> ModuleType:
    """Imports the module `name` of a package.

    Args:
      package: where to look.
      what: the kind of component, in words, for the error message.
      name: a module name in it.

    Raises:
      UserError: there is no such module; the message lists those there are.
    """
    check_choice(what, name, names(package))
    return importlib.import_module(f"{package.__name__}.{name}")
