"""Options of the XLA compiler for each platform, chosen by what docs/benchmarks-history.md says."""

import functools
from typing import Any

import jax

# CPU: level 1 compiles a third faster than the default, and the program is as fast. The newer
# fusion emitters make the loops here a fifth slower.
# GPU: with deterministic operations a program gives the same result each time it is compiled. XLA's
# own matrix products (Triton) abort the compilation of a DARTS supernet.
_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False},
    "gpu": {"xla_gpu_deterministic_ops": True, "xla_gpu_enable_triton_gemm": False},
}
# A program that runs only once spends most of its time in compilation.
_OPTIONS_FOR_ONE_RUN = _OPTIONS | {"cpu": {"xla_backend_optimization_level": 0}}


def options(platform: str, *, once: bool = False) -> dict[str, Any] | None:
    """Returns the `compiler_options` for `jax.jit`, or None if there are none.

    Options that the installed version of XLA does not know are left out.

    Args:
      platform: Name of the platform: 'cpu', 'gpu' or 'tpu'.
      once: Whether the program will run only once.
    """
    wanted = (_OPTIONS_FOR_ONE_RUN if once else _OPTIONS).get(platform, {})
    return {name: value for name, value in wanted.items() if _is_known(name, value)} or None


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Returns whether XLA knows an option, by compiling a program with it."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
