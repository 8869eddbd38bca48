"""FLOPs against counts done by hand."""

import jax
import jax.numpy as jnp

from s8bqat_jax.training import flops


def test_products():
  a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))
  assert flops.count(jnp.dot, a, b) == flops.Flops(products=2 * 3 * 4 * 5)
  batched = lambda a, b: jnp.einsum('bij,bjk->bik', a, b)
  counted = flops.count(batched, jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 5)))
  assert counted.products == 2 * 2 * 3 * 4 * 5


def test_convolution():
  x, w = jnp.zeros((1, 8, 10)), jnp.zeros((6, 8, 3))
  conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), 'VALID')
  assert flops.count(conv, x, w).products == 2 * 8 * 3 * 6 * 8


def test_a_scan_counts_every_step_and_its_backward():
  w, x = jnp.zeros((4, 4)), jnp.zeros((7, 2, 4))

  def run(w):
    body = lambda h, x: (jnp.tanh(h @ w + x), None)
    return jnp.sum(jax.lax.scan(body, jnp.zeros((2, 4)), x)[0])

  one = 2 * 2 * 4 * 4
  assert flops.count(run, w).products == 7 * one
  # Backward: one product for the weights and one for the state, each step.
  assert flops.count(jax.grad(run), w).products == 7 * 3 * one


def test_nested_calls_and_loops():
  inner = jax.jit(lambda a: jax.checkpoint(lambda b: b @ b)(a))
  a = jnp.zeros((3, 3))
  assert flops.count(inner, a).products == 2 * 27
  loop = lambda a: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, a)
  assert flops.count(loop, a).unbounded == 1
  branch = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a, a)
  assert flops.count(branch, a).products == 2 * 27


def test_a_scatter_counts_its_elements():
  x, rows = jnp.zeros((100, 10)), jnp.arange(3)
  counted = flops.count(lambda x: x.at[rows].add(1.0), x)
  assert counted.elementwise >= x.size and not counted.products
