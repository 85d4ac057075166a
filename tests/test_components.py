"""Components: bundled ones by name, a user's own by path, and errors that say what is wrong."""

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from drnas_jax import components
from drnas_jax.errors import UserError

ROOT = Path(__file__).parents[1]
MODULE = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Options:
    patch: int = 4

@dataclasses.dataclass(frozen=True)
class Made:
    arguments: tuple

def create(*arguments):
    return Made(arguments)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory, which is not on sys.path before or after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def write(file, text=MODULE):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refused(name, kind="space"):
    """Returns the message of the error that `find` raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        components.find(kind, name, "space")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Bundled components


def test_bundled_components_are_the_public_modules_of_their_package():
    # Would catch a listing that includes base.py or private modules, or that misses packages.
    assert components.names("space") == [
        *("darts", "darts_s1", "darts_s2", "darts_s3", "darts_s4"),
        *("macro", "nasbench201"),
    ]
    assert {"dirichlet", "softmax"} <= set(components.names("distribution"))
    for kind in components.KINDS:
        assert not [name for name in components.names(kind) if name == "base" or name[0] == "_"]


@pytest.mark.parametrize("kind", components.KINDS)
def test_every_bundled_component_is_found_and_its_options_are_valid(kind):
    # Would catch an Options class that is not frozen, or a field of it without a default.
    for name in components.names(kind):
        options = components.options_type(components.find(kind, name, kind))
        assert options is None or hash(options()) == hash(options())


def test_a_bundled_component_is_its_module():
    assert components.find("space", "darts", "space").__name__ == "drnas_jax.spaces.darts"


@pytest.mark.parametrize("name", ["drats", "", "base", "dar-ts", "a/b", "darts.", "..darts"])
def test_a_wrong_name_lists_the_bundled_ones_and_the_other_ways(name):
    message = refused(name)
    assert repr(name) in message
    assert "darts_s4, macro, nasbench201" in message
    assert "my.module" in message and ".py" in message


# A user's module


@pytest.mark.parametrize("name", ["own/vit.py", "{here}/own/vit.py", "~/own/vit.py"])
def test_a_file_is_found_by_its_path(here, monkeypatch, name):
    # Would catch a path that is not expanded, or is not relative to the current directory.
    monkeypatch.setenv("HOME", str(here))
    file = write(here / "own" / "vit.py")
    module = components.find("space", name.format(here=here), "space")
    assert Path(module.__file__) == file
    assert components.find("space", str(file), "space") is module


def test_a_dotted_path_is_found_in_the_current_directory(here):
    write(here / "found_here" / "inside" / "vit.py")
    module = components.find("space", "found_here.inside.vit", "space")
    assert module.__name__ == "found_here.inside.vit"
    assert components.find("space", "found_here.inside.vit", "space") is module


def test_a_dotted_path_is_found_on_sys_path(here):
    write(here / "library" / "found_there" / "vit.py")
    sys.path.append(str(here / "library"))
    assert components.find("space", "found_there.vit", "space").Options().patch == 4


def test_files_of_the_same_name_are_two_modules(here):
    # Would catch a module name that is only the name of the file.
    one = components.find("space", str(write(here / "one" / "vit.py")), "space")
    two = components.find("space", str(write(here / "two.v" / "vit.py")), "space")
    assert one is not two
    assert one.Options() != two.Options()


def test_a_file_that_shares_its_name_with_a_library_module_does_not_replace_it(here):
    components.find("space", str(write(here / "pickle.py")), "space")
    assert sys.modules["pickle"] is pickle


def test_objects_of_a_users_file_can_be_unpickled_in_another_process(here):
    # Would catch a module name that only this process can import: worker processes could not.
    file = write(here / "my data" / "da.ta%2E.py")
    made = components.find("data", str(file), "data.name").create(1, "two")
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).arguments)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(made),
        capture_output=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.decode().strip() == "(1, 'two')", done.stderr.decode()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such/vit.py", ["'no_such/vit.py'", "no such file"]),
        ("no_such.vit", ["'no_such.vit'", "no such module", ".py"]),
        ("json.no_such", ["'json.no_such'", "no such module"]),
        ("json.decoder", ["'json.decoder'", "no function `create`"]),
    ],
)
def test_a_module_that_is_missing_or_no_component_is_refused(here, name, words):
    message = refused(name)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("x = (", 1, "SyntaxError"),
        ("\nx = undefined", 2, "NameError: name 'undefined' is not defined"),
        ("\n\nimport no_such_library", 3, "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import json\njson.loads('{')", 2, "JSONDecodeError"),
        (MODULE.replace("int = 4", "list = []"), 4, "ValueError: mutable default"),
    ],
    ids=["syntax", "name", "import", "library", "dataclass"],
)
@pytest.mark.parametrize("name", ["{}.py", "broken.{}"])
def test_a_module_that_fails_to_import_is_named_with_line_and_error(here, text, line, error, name):
    # Would catch an error that hides where it happened, or names the library's line instead.
    name = name.format(here.name)  # another one in each case, since modules are cached
    file = write(here / (name if name.endswith(".py") else name.replace(".", "/") + ".py"), text)
    message = refused(name)
    assert repr(name) in message
    assert f"{file}, line {line}: " in message
    assert error in message


def test_a_bug_of_ours_in_a_users_import_is_not_reported_as_a_mistake(here, monkeypatch):
    # Would catch a bug of this package that is reported as one of the user's module.
    monkeypatch.setattr("drnas_jax.config.conversion.OPTIONS", None)  # breaks `defaults`
    name = str(write(here / "calls.py", "from drnas_jax.config import defaults\n\ndefaults()\n"))
    with pytest.raises(TypeError, match="not iterable"):
        components.find("space", name, "space")


def test_a_module_that_was_repaired_can_be_imported(here):
    # Would catch a failed import that stays in a cache; matters in a notebook.
    file = write(here / "repaired.py", "x = undefined_name_of_some_length")
    assert "NameError" in refused("repaired.py")
    write(file)
    assert components.find("space", "repaired.py", "space").Options().patch == 4


# Options and creation


def test_a_component_is_created_with_its_options_after_other_arguments(here):
    name = str(write(here / "with_options.py"))
    options = components.options_type(components.find("data", name, "data.name"))(patch=2)
    made = components.create("data", name, options, "folder", field="data.name")
    assert made.arguments == ("folder", options)


def test_without_options_a_component_has_the_defaults(here):
    # Would catch a component that is created with None in place of its options.
    name = str(write(here / "with_defaults.py"))
    options = components.options_type(components.find("data", name, "data.name"))()
    made = components.create("data", name, None, "folder", field="data.name")
    assert made.arguments == ("folder", options)


def test_a_component_without_options_is_created_without_them(here):
    name = str(write(here / "without_options.py", MODULE.replace("class Options", "class Other")))
    assert components.options_type(components.find("cost", name, "cost.name")) is None
    assert components.create("cost", name, None, field="cost.name").arguments == ()
    assert components.create("table", name, None, "file", field="table.name").arguments == ("file",)


def test_an_error_in_create_keeps_its_traceback_and_names_the_component(here):
    # Would catch a traceback that does not say for which field the module was called.
    text = "from drnas_jax.errors import UserError\n\n\ndef create(kind):\n    raise kind('no')\n"
    name = str(write(here / "failing.py", text))
    with pytest.raises(KeyError) as caught:
        components.create("cost", name, None, KeyError, field="cost.name")
    assert caught.traceback[-1].lineno == 4  # counted from 0
    (note,) = caught.value.__notes__
    assert all(word in note for word in ("`create`", "cost", repr(name), "cost.name"))
    with pytest.raises(UserError, match="^no$") as caught:
        components.create("cost", name, None, UserError, field="cost.name")
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    "options", ["class Options: ...", "Options = 3", "@dataclass\nclass Options: ..."]
)
def test_options_that_are_no_frozen_dataclass_are_refused(here, options):
    text = f"from dataclasses import dataclass\n{options}\ncreate = print\n"
    file = write(here / f"options_{len(options)}.py", text)
    with pytest.raises(UserError, match=f"Options in {file} is .*: expected a frozen dataclass"):
        components.options_type(components.find("space", str(file), "space"))


# Names and sources


@pytest.mark.parametrize(
    ("name", "short", "users"),
    [
        ("darts", "darts", False),
        ("examples/vit.py", "vit", True),
        ("/a.b/vit.v2.py", "vit.v2", True),
        ("my.pkg.vit", "vit", True),
        ("", "", False),
        ("my_set:3.0.1", "1", False),
    ],
)
def test_short_names_and_whose_a_name_is(name, short, users):
    # Would catch a TFDS name with a version that is taken for a dotted path.
    assert components.is_users(name) is users
    if users or "." not in name:
        assert components.short_name(name) == short


def test_the_source_of_a_users_module_is_its_file_and_hash(here):
    file = write(here / "sourced.py")
    expected = (str(file), hashlib.sha256(MODULE.encode()).hexdigest())
    assert components.source_of("space", "sourced.py") == expected
    write(file, MODULE + "\n# changed after it was imported")
    assert components.source_of("space", "sourced.py") == expected


def test_a_bundled_component_has_no_source():
    assert components.source_of("space", "darts") is None


def test_a_frozen_dataclass_of_a_users_file_works_with_type_hints_as_texts(here):
    # Would catch a module that is missing in sys.modules, where dataclasses look for it.
    text = "from __future__ import annotations\n" + MODULE
    options = components.find("space", str(write(here / "hints.py", text)), "space").Options
    assert dataclasses.replace(options(), patch=3).patch == 3
