"""Options of the XLA compiler, as measured (docs/benchmarks.md)."""

import functools
from typing import Any

import jax

# CPU: level 1 compiles a third faster than the default and runs as fast; the newer fusion emitters
# run these loops a fifth slower. GPU: the same program gives the same result each time it is
# compiled, and XLA's own matrix products (Triton) end the compilation of a DARTS supernet.
_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False},
    "gpu": {"xla_gpu_deterministic_ops": True, "xla_gpu_enable_triton_gemm": False},
}
# Of a program that runs once, compilation is what takes time.
_OPTIONS_OF_ONE_RUN = _OPTIONS | {"cpu": {"xla_backend_optimization_level": 0}}


def options(platform: str, *, once: bool = False) -> dict[str, Any] | None:
    """The `compiler_options` of `jax.jit`: those that the installed XLA knows, which differ.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      once: the program will run once.
    """
    wanted = (_OPTIONS_OF_ONE_RUN if once else _OPTIONS).get(platform, {})
    return {name: value for name, value in wanted.items() if _is_known(name, value)} or None


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
