"""Only compiler options that the installed XLA knows are used."""

import jax
import pytest

from drnas_jax.training import compiler


def test_an_unknown_option_is_left_out(monkeypatch):
    # Catches a new version of XLA, which refuses to compile with an option it has dropped.
    wanted = {"xla_backend_optimization_level": 1, "xla_of_another_version": True}
    monkeypatch.setattr(compiler, "_OPTIONS", {"cpu": wanted})
    assert compiler.options("cpu") == {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(compiler, "_OPTIONS", {"cpu": {"xla_of_another_version": True}})
    assert compiler.options("cpu") is None


def test_a_wrong_value_is_an_error(monkeypatch):
    # Catches a typing error that would silently switch an option off.
    monkeypatch.setattr(compiler, "_OPTIONS", {"cpu": {"xla_backend_optimization_level": "high"}})
    with pytest.raises(jax.errors.JaxRuntimeError):
        compiler.options("cpu")


@pytest.mark.parametrize("once", [False, True])
def test_the_options_for_cpus_compile(once):
    # Catches options that no program compiles with.
    options = compiler.options("cpu", once=once)
    assert options["xla_backend_optimization_level"] == (0 if once else 1)
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_tpus_have_no_options():
    # Catches options of another platform.
    assert compiler.options("tpu") is None
