"""Counts of instructions and of cycles in the text of a compiled program."""

import jax
import jax.numpy as jnp

from drnas_jax.tools.compiled_text import count_cycles, count_kernels

# Two nested loops and a conditional, with cycles in the format of the TPU compiler.
PROGRAM = """HloModule jit_f

%inner_body (p: s32[]) -> s32[] {
  ROOT %a = s32[] add(%p, %p), backend_config={"window_config":{"estimated_cycles":"7"}}
}

%inner_condition (p: s32[]) -> pred[] {
  %c = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%p, %c), direction=LT
}

%outer_body (p: s32[]) -> s32[] {
  %b = s32[] add(%p, %p), backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %w = s32[] while(%b), condition=%inner_condition, body=%inner_body
}

%outer_condition (p: s32[]) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%p, %c), direction=LT
}

%left (p: s32[]) -> s32[] {
  ROOT %a = s32[] add(%p, %p), backend_config={"window_config":{"estimated_cycles":"20000"}}
}

%right (p: s32[]) -> s32[] {
  ROOT %a = s32[] add(%p, %p), backend_config={"window_config":{"estimated_cycles":"40000"}}
}

ENTRY %main (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %a = s32[] add(%p, %p), backend_config={"window_config":{"estimated_cycles":"1000"}}
  %w = s32[] while(%a), condition=%outer_condition, body=%outer_body
  ROOT %c = s32[] conditional(%p, %w, %w), branch_computations={%left, %right}
}
"""


def test_cycles_of_a_loop_count_once_per_iteration():
    # Would catch a nested loop or a branch that is counted once, twice or not at all.
    assert count_cycles(PROGRAM) == 1000 + 3 * (100 + 5 * 7) + 20000 + 40000


def test_kernels_of_a_loop_count_once():
    # Would catch the instructions inside a fusion counted, or those of a loop or a branch left out.
    assert count_kernels(PROGRAM) == 7  # five sums and two comparisons

    def count(function, *arguments):
        return count_kernels(jax.jit(function).lower(*arguments).compile().as_text())

    def product(x):
        return jnp.tanh(x @ x + 1) * 2

    def loop(x):
        return jax.lax.fori_loop(0, 9, lambda i, x: product(x), x)

    x = jnp.ones((64, 64))
    assert 1 <= count(product, x) <= 3  # the product, and the others as one fusion
    assert count(product, x) < count(loop, x) < 9 * count(product, x)
