"""Compiler options that the installed XLA does not know are left out."""

import jax
import pytest

from drnas_jax.training import compiler


def test_an_unknown_option_is_left_out(monkeypatch):
    wanted = {"xla_backend_optimization_level": 1, "xla_of_another_version": True}
    monkeypatch.setattr(compiler, "_OPTIONS", {"cpu": wanted})
    assert compiler.options("cpu") == {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(compiler, "_OPTIONS", {"cpu": {"xla_of_another_version": True}})
    assert compiler.options("cpu") is None


def test_any_other_error_is_shown(monkeypatch):
    monkeypatch.setattr(compiler, "_OPTIONS", {"cpu": {"xla_backend_optimization_level": "high"}})
    with pytest.raises(jax.errors.JaxRuntimeError):
        compiler.options("cpu")


@pytest.mark.parametrize("once", [False, True])
def test_options_of_the_cpu_compile(once):
    options = compiler.options("cpu", once=once)
    assert options["xla_backend_optimization_level"] == (0 if once else 1)
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_no_options_for_others():
    assert compiler.options("tpu") is None
