"""Every primitive: kernel = oracle = batched kernel, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s8bqat_jax.integer import conv, dot, elementwise, norm, primitives, softmax
from s8bqat_jax.integer.requantize import Out

R = np.random.default_rng(0)
OUT = Out(3, -128, 127)
OUT16 = Out(0, -32767, 32767, 'int16')
SITE = {'site': 'here'}
M = np.int32(1_500_000_000)


def i8(*shape):
  return R.integers(-128, 128, shape).astype(np.int8)


def i16(*shape):
  return R.integers(-(2**15), 2**15, shape).astype(np.int16)


def i32(*shape):
  return R.integers(-(2**14), 2**14, shape).astype(np.int32)


def window(**kw):
  base = {
    'strides': (1,), 'padding': ((1, 1),), 'dilation': (1,), 'zero': 5,
    'shift': 40, 'out': OUT, **SITE,
  }  # fmt: skip
  return {**base, **kw}


def dots(dims, zeros=(0, 0), out=OUT):
  return {
    'dimension_numbers': dims, 'zeros': zeros, 'shift': 40, 'out': out, **SITE
  }  # fmt: skip


MATMUL = (((1,), (0,)), ((), ()))
HEADS = (((3,), (3,)), ((0, 2), (0, 2)))
ODD = (((0, 2), (2, 0)), ((1,), (1,)))
EXP = softmax.exp_table(0.05)

# name, arrays (the first `mapped` may be vmapped), params, mapped.
CASES = [
  (dot.q_dot, (i8(4, 9), i8(9, 5), i32(5), M), dots(MATMUL), 1),
  (dot.q_dot, (i8(1, 9), i8(9, 5), i32(5), i32(5)), dots(MATMUL), 1),
  (dot.q_dot, (i8(0, 9), i8(9, 5), i32(5), M), dots(MATMUL), 1),
  (dot.q_dot, (i8(4, 0), i8(0, 5), i32(5), M), dots(MATMUL), 1),
  (
    dot.q_dot,
    (i8(2, 3, 4, 5), i8(2, 6, 4, 5), i32(), M),
    dots(HEADS, (3, -7), OUT16),
    2,
  ),
  (dot.q_dot, (i8(3, 2, 4), i8(4, 2, 3), i32(), M), dots(ODD, (1, 9)), 2),
  (conv.q_conv, (i8(2, 7, 3), i8(3, 3, 4), i32(4), M),
   window(groups=1), 1),
  (conv.q_conv, (i8(2, 9, 4), i8(3, 2, 6), i32(6), i32(6)),
   window(groups=2, strides=(2,), dilation=(2,)), 1),
  (conv.q_conv, (i8(1, 5, 6, 2), i8(3, 2, 2, 3), i32(3), M),
   window(groups=1, strides=(2, 1), padding=((1, 0), (0, 2)),
          dilation=(1, 2)), 1),
  (conv.q_conv, (i8(1, 2, 3), i8(5, 3, 4), i32(4), M),
   window(groups=1, padding=((0, 0),)), 1),  # Longer than its input.
  (conv.q_depthwise, (i8(2, 9, 4), i8(3, 4), i32(4), M),
   window(strides=(2,)), 1),
  (conv.q_pool, (i8(2, 7, 3), M), window(kind='max', window=(3,)), 1),
  (conv.q_pool, (i8(2, 7, 3), M), window(kind='sum', window=(3,)), 1),
  (conv.q_sum, (i8(2, 7, 3), M),
   {'over': (1,), 'zero': 4, 'shift': 40, 'out': OUT, **SITE}, 1),
  (elementwise.q_rescale, (i16(6), M),
   {'zero': 2, 'shift': 38, 'out': OUT, **SITE}, 1),
  (elementwise.q_add, (i8(4, 3), i16(4, 3), M, -M),
   {'zeros': (3, 0), 'shift': 44, 'out': OUT, **SITE}, 2),
  (elementwise.q_add, (i8(4, 3), i8(3), M, M),
   {'zeros': (3, 1), 'shift': 34, 'out': OUT16, **SITE}, 2),
  (elementwise.q_mul, (i16(4, 3), i8(4, 1), M),
   {'zeros': (0, 7), 'shift': 45, 'out': OUT, **SITE}, 2),
  (elementwise.q_lut, (i8(9), i8(256)), {'out': OUT, **SITE}, 1),
  (elementwise.q_lut, (i16(9), i8(2**16)), {'out': OUT, **SITE}, 1),
  (elementwise.q_embed, (np.int32([[0, 3], [-1, 9]]), i8(5, 2)),
   {'out': OUT, **SITE}, 1),
  (softmax.q_softmax, (i8(3, 6), EXP),
   {'masked': False, 'bits': 8, 'out': Out(-128), **SITE}, 1),
  (softmax.q_softmax, (np.int8([[-128] * 3, [-128, 4, 5]]), EXP),
   {'masked': True, 'bits': 15, 'out': OUT16, **SITE}, 1),
  (softmax.q_log_softmax,
   (i8(3, 6), EXP, softmax.log_table(), M, np.int32(9000)),
   {'masked': False, 'shift': 36, 'out': Out(127), **SITE}, 1),
  (norm.q_layernorm, (i8(4, 6), i32(6) * 2**14, i32(6)),
   {'center': True, 'epsilon': 7, 'zero': 3, 'shift': 40, 'out': OUT, **SITE},
   1),
  (norm.q_layernorm, (i16(4, 900), i32(900) * 2**14, i32(900)),
   {'center': True, 'epsilon': 7, 'zero': 3, 'shift': 40, 'out': OUT16, **SITE},
   1),
  (norm.q_layernorm, (i16(4, 6), M, i32(6)),
   {'center': False, 'epsilon': 0, 'zero': 0, 'shift': 44, 'out': OUT16,
    **SITE}, 1),
]  # fmt: skip
IDS = [f'{i}-{c[0].__name__}' for i, c in enumerate(CASES)]


@pytest.mark.parametrize('bind, args, params, mapped', CASES, ids=IDS)
def test_kernel_equals_oracle(bind, args, params, mapped):
  del mapped
  op = primitives.REGISTRY[bind.__name__]
  expected = op.oracle(*args, **params)
  result = bind(*args, **params)
  assert result.dtype == expected.dtype and result.shape == expected.shape
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('bind, args, params, mapped', CASES, ids=IDS)
def test_vmap_stays_one_primitive_and_equals_a_loop(bind, args, params, mapped):
  for which in range(mapped):
    stacked = list(args)
    stacked[which] = np.stack([args[which], args[which][::-1]])
    axes = [0 if i == which else None for i in range(len(args))]
    run = jax.vmap(lambda *a: bind(*a, **params), axes)
    names = [e.primitive.name for e in jax.make_jaxpr(run)(*stacked).eqns]
    assert names.count(bind.__name__) == 1
    op = primitives.REGISTRY[bind.__name__]
    loop = []
    for one in stacked[which]:
      single = list(args)
      single[which] = one
      loop.append(op.oracle(*single, **params))
    np.testing.assert_array_equal(run(*stacked), np.stack(loop))


def test_every_primitive_has_a_case():
  assert {c[0].__name__ for c in CASES} == set(primitives.REGISTRY)


GEOMETRIES = [
  # length, window, strides, padding, dilation, groups
  ((9,), (3,), (1,), ((0, 0),), (1,), 1),
  ((9,), (3,), (2,), ((1, 1),), (1,), 1),
  ((9,), (2,), (3,), ((2, 0),), (2,), 2),
  ((10,), (4,), (2,), ((0, 5),), (3,), 1),
  ((10,), (3,), (1,), ((-2, 1),), (2,), 2),
  ((3,), (5,), (1,), ((0, 0),), (1,), 1),
  ((5, 6), (3, 2), (1, 2), ((1, 1), (0, 2)), (1, 1), 1),
  ((5, 6), (2, 3), (2, 1), ((0, -1), (3, 0)), (2, 1), 2),
]


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('depthwise', [False, True])
def test_convolutions_are_those_of_xla(geometry, depthwise):
  size, taps, strides, padding, dilation, groups = geometry
  x = i8(2, *size, 4)
  if depthwise:
    groups, kernel = 4, i8(*taps, 4)
    whole = kernel[..., None, :]
  else:
    whole = kernel = i8(*taps, 4 // groups, 6)
  zero = 5
  low, high = -(2**31), 2**31 - 1
  # 2 / 2^1: the sum itself.
  params = window(
    strides=strides, padding=padding, dilation=dilation, zero=zero, shift=1,
    out=Out(0, low, high, 'int32'),
  )  # fmt: skip
  bias, one = i32(whole.shape[-1]), np.int32(2)
  if depthwise:
    got = conv.q_depthwise(x, kernel, bias, one, **params)
  else:
    got = conv.q_conv(x, kernel, bias, one, groups=groups, **params)
  # Padding holds the code of zero, which XLA's own padding is after a shift.
  space = 'HW'[: len(size)]
  layout = f'N{space}C', f'{space}IO', f'N{space}C'
  product = jax.lax.conv_general_dilated(
    x.astype(np.float64) - zero, whole.astype(np.float64), strides, padding,
    rhs_dilation=dilation, feature_group_count=groups,
    dimension_numbers=layout,
  )  # fmt: skip
  shift = zero * whole.astype(int).sum(axis=tuple(range(whole.ndim - 1)))
  np.testing.assert_array_equal(got, np.asarray(product) + shift + bias)


def test_vmap_over_a_constant_is_an_error():
  run = jax.vmap(
    lambda t: elementwise.q_lut(jnp.zeros(3, jnp.int8), t, out=OUT, **SITE)
  )
  with pytest.raises(NotImplementedError, match='constant of the integer'):
    run(np.zeros((2, 256), np.int8))


def test_all_dot_pairs_batched():
  l, r = i8(3, 4, 5), i8(3, 5, 2)
  run = lambda a, b: dot.q_dot(a, b, np.int32(0), M, **dots(MATMUL, (2, 3)))
  both = jax.vmap(run)(l, r)
  np.testing.assert_array_equal(both, [run(a, b) for a, b in zip(l, r)])
