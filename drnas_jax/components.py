"""Looks components up: a bundled one by its name, a user's own module by its path.

A component is a module with a function `create`. It may also have a class `Options`, a frozen
dataclass; `create` then takes an instance of it. Neither kind of module is registered anywhere.
"""

import functools
import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
import urllib.parse
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from drnas_jax.errors import UserError

# Kind of component -> the package whose public modules are the bundled ones.
KINDS = {
    "space": "drnas_jax.spaces",
    "distribution": "drnas_jax.distributions",
    "penalty": "drnas_jax.penalties",
    "selection": "drnas_jax.rules.selection",
    "stopping": "drnas_jax.rules.stopping",
    "cost": "drnas_jax.costs",
    "data": "drnas_jax.data.sources",
    "table": "drnas_jax.tables",
    "writer": "drnas_jax.writers",
    "format": "drnas_jax.export_formats",
}

# A user's file is imported as a submodule of this module, and its name there is its path. So any
# process can import it by that name alone, as a worker process must to unpickle an object of it.
__path__: list[str] = []
_PREFIX = f"{__name__}."

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class ModuleSource(NamedTuple):
    """The file of a user's module, and its content when this process imported it.

    Attributes:
      file: Absolute path of the file.
      sha256: Hash of the file's content, in hexadecimal digits. It does not cover what the module
        imports.
    """

    file: str
    sha256: str


def names(kind: str) -> list[str]:
    """Lists the bundled components of a kind: the public modules of its package except `base`."""
    package = importlib.import_module(KINDS[kind])
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in modules if not name.startswith("_") and name != "base")


def table_of(space: str) -> str:
    """Returns the name of the bundled table of a space, or an empty string if it has none.

    It is the table with the name of the space, or the one whose constant `SPACE` is that name.
    """
    bundled = names("table")
    if space in bundled:
        return space
    modules = {name: find("table", name, "table.name") for name in bundled}
    return next((name for name in bundled if getattr(modules[name], "SPACE", "") == space), "")


def is_users(name: str) -> bool:
    """Returns whether a name is that of a user's module: `my.module` or `path/to/module.py`."""
    return name.endswith(".py") or bool(_DOTTED.fullmatch(name))


def short_name(name: str) -> str:
    """Returns the last part of a component's name: `vit` for `examples/vit.py` and `my.pkg.vit`."""
    return Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]


def find(kind: str, name: str, field: str) -> ModuleType:
    """Imports a component.

    Args:
      kind: Key of `KINDS`.
      name: Name of a bundled component, which has no dot; or a user's module, as a dotted import
        path that is found on `sys.path` or in the current directory, or as a path that ends in
        `.py`.
      field: Name of the config field that holds `name`, for error messages.

    Raises:
      UserError: There is no such component, or the user's module fails to import or has no
        function `create`.
    """
    if is_users(name):
        module = _import_users(name, field)
        if not callable(getattr(module, "create", None)):
            raise UserError(
                f"{field} is {name!r}, which has no function `create`: add one that returns the "
                f"{kind}"
            )
        _source(module)
        return module
    check_name(kind, name, field)
    return importlib.import_module(f"{KINDS[kind]}.{name}")


def check_name(kind: str, name: str, field: str) -> None:
    """Raises UserError unless a name is that of a bundled component or of a user's module.

    Nothing is imported, so the user's module may still not exist; arguments as in `find`.
    """
    bundled = names(kind)
    if name not in bundled and not is_users(name):
        choice = f"choose one of {', '.join(bundled)}, or" if bundled else "none is bundled:"
        raise UserError(
            f"unknown {field} {name!r}: {choice} give your own module as a dotted path "
            "(my.module) or a .py file (path/to/module.py)"
        )


def options_type(module: ModuleType) -> type | None:
    """Returns the dataclass `Options` of a component, or None if it has no options.

    Raises:
      UserError: `Options` is not a frozen dataclass that compares by value.
    """
    options = getattr(module, "Options", None)
    if options is None:
        return None
    parameters = getattr(options, "__dataclass_params__", None)
    if not (isinstance(options, type) and parameters and parameters.frozen and parameters.eq):
        raise UserError(f"Options in {module.__file__} is {options!r}: expected a frozen dataclass")
    return options


def create(kind: str, name: str, options: Any, *first: Any, field: str) -> Any:
    """Calls the function `create` of a component and returns the result.

    Args:
      kind: Key of `KINDS`.
      name: Name of the component; see `find`.
      options: Instance of the component's `Options`, or None for the defaults; ignored if it has
        none.
      *first: Arguments that come before the options.
      field: Name of the config field that holds `name`, for error messages.

    Raises:
      UserError: There is no such component; see `find`.
    """
    module = find(kind, name, field)
    options_class = options_type(module)
    arguments = first
    if options_class is not None:
        arguments = (*first, options_class() if options is None else options)
    try:
        return module.create(*arguments)
    except UserError:
        raise
    except Exception as error:  # a bug of the module, whose traceback is of more use than a line
        error.add_note(f"raised by `create` of the {kind} {name!r} ({field} in the config)")
        raise


def source_of(kind: str, name: str) -> ModuleSource | None:
    """Returns the file and the hash of a user's module, or None for a bundled component."""
    return _source(find(kind, name, kind)) if is_users(name) else None


def import_file(file: Path) -> ModuleType:
    """Imports a `.py` file, or returns its module if it was imported before.

    Worker processes can import it too, however they were started, so objects of its classes can be
    pickled.
    """
    path = str(file.expanduser().resolve().with_suffix(""))
    return importlib.import_module(_PREFIX + path.replace("%", "%25").replace(".", "%2E"))


def is_bug_of_ours(error: Exception) -> bool:
    """Returns whether an error that a user's code has passed on was raised by this package.

    Such an error needs its traceback, and must not be reported as a mistake of the user. The
    bundled recipes belong to the package too, unless they lie in the user's checkout.
    """
    if isinstance(error, UserError | SyntaxError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    files = [Path(frame.filename) for frame in frames if frame.filename not in _CALLERS]
    written = [file for file in files if _is_ours(file) or not _is_library(str(file))]
    return bool(written) and _is_ours(written[-1])


def place(error: Exception) -> tuple[str | None, int | None]:
    """Returns the file and the line of a user's code that failed."""
    if isinstance(error, SyntaxError):
        return error.filename, error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    # An error that a library raises is best understood from the line that called the library.
    own = [frame for frame in frames if not _is_library(frame.filename)]
    last = (own or frames)[-1]
    return last.filename, last.lineno


def failure(error: Exception) -> str:
    """Describes in one line where a user's code failed and why: file, line and error."""
    file, line = place(error)
    if isinstance(error, SyntaxError):
        reason = f"{type(error).__name__}: {error.msg}"
    else:
        reason = traceback.format_exception_only(error)[-1]
    reason = " ".join(reason.split())
    if len(reason) > 200:  # ml_collections prints the whole config between two useful sentences
        reason = f"{reason[:120]} ... {reason[-60:]}"
    return f"{file}, line {line}: {reason}"


class _UserFiles(importlib.abc.MetaPathFinder):
    """Imports a user's file by the module name that `import_file` gives it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if not fullname.startswith(_PREFIX):
            return None
        file = urllib.parse.unquote(fullname.removeprefix(_PREFIX)) + ".py"
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(_UserFiles())


def _import_users(name: str, field: str) -> ModuleType:
    is_file = name.endswith(".py")
    if is_file and not Path(name).expanduser().is_file():
        raise UserError(f"{field} is {name!r}, and there is no such file: correct the path")
    if not is_file and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()  # in a notebook the module may be younger than the process
    try:
        return import_file(Path(name)) if is_file else importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises
        missing = error.name if isinstance(error, ModuleNotFoundError) and not is_file else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise UserError(
                f"{field} is {name!r}, and there is no such module on sys.path or in the current "
                "directory: correct the name, or give the path of a .py file"
            ) from error
        if is_bug_of_ours(error):
            raise
        raise UserError(f"{field} is {name!r}, which fails to import: {failure(error)}") from error


@functools.cache  # the file may change later, the imported module does not
def _source(module: ModuleType) -> ModuleSource:
    file = Path(str(module.__file__)).resolve()
    return ModuleSource(str(file), hashlib.sha256(file.read_bytes()).hexdigest())


_PACKAGE = Path(__file__).parent
_CALLERS = (__file__, str(_PACKAGE / "flags.py"))  # the modules that call a user's code


def _is_ours(file: Path) -> bool:
    return file.is_relative_to(_PACKAGE)


def _is_library(filename: str) -> bool:
    installed = {"site-packages", "dist-packages"} & set(Path(filename).parts)
    return bool(installed) or filename.startswith((sysconfig.get_path("stdlib"), "<", __file__))
