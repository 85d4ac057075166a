"""Optional packages: one that is missing is one line that says how to install it."""

import sys

import pytest

from drnas_jax.errors import UserError
from drnas_jax.extras import import_extra


def refused(package):
    with pytest.raises(UserError) as caught:
        import_extra(package, "mine", "my writer")
    return str(caught.value)


def test_an_installed_package_is_returned():
    assert import_extra("json", "mine", "my writer") is sys.modules["json"]


def test_a_missing_package_is_named_with_its_extra():
    line = refused("no_such_package")
    assert line.startswith("my writer needs the package no_such_package (No module named ")
    assert line.endswith("): pip install 'drnas_jax[mine]'")


def test_a_package_that_fails_to_import_says_why(tmp_path, monkeypatch):
    # Would catch an advice to install what is installed, without a reason.
    (tmp_path / "broken_package.py").write_text("raise ImportError('its library\\nis too old')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "(its library is too old)" in refused("broken_package")


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch):
    # Would catch the folder `wandb` that W&B itself leaves in the current directory.
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert f"({tmp_path / 'only_a_folder'} is only a folder)" in refused("only_a_folder")
