"""The cost model against counts made by hand."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from s8bqat_jax.artifacts.qtensor import QTensor
from s8bqat_jax.integer import calibrate, lower
from s8bqat_jax.npu import INDEX_NPU, INT8_NPU, ethos, latency, plot

R = np.random.default_rng(0)
K, N, STEPS = 64, 64, 10


def weight(levels):
  codes = R.integers(0, levels, (K, N)).astype(np.uint8)
  book = np.sort(R.integers(-127, 128, levels)).astype(np.int8)
  return {'w': QTensor(codes, np.float32(0.01), book, levels)}


def lowered(fn, params, x):
  return lower(fn, params, calibrate(fn, params, [x]), x)


def product(p, x):
  return x @ p['w']


@pytest.mark.parametrize('levels, bits', [(4, 2), (16, 4), (256, 8)])
def test_packed_bytes_and_macs(levels, bits):
  fn = lowered(product, weight(levels), R.normal(size=(3, K)).astype('f'))
  (op,) = latency(fn, INDEX_NPU).ops
  table = levels if bits < 8 else 0
  assert op.weight_bytes == K * N * bits // 8 + table
  assert op.macs == 3 * K * N
  assert latency(fn, INT8_NPU).weight_bytes == K * N


def test_weights_are_counted_whatever_their_name():
  (w,) = weight(4).values()
  name = 'a_block_of_a_deep_model/' * 8
  fn = lowered(lambda p, x: x @ p[name], {name: w}, np.ones((1, K), 'f'))
  assert latency(fn, INDEX_NPU).weight_bytes == K * N // 4 + 4


def test_activations_that_leave_the_chip_are_counted_on_every_side():
  big, small = np.ones((64, 64), 'f'), np.ones((1, 64), 'f')
  tight = INDEX_NPU._replace(activation_sram=64 * 64 - 1)

  def moved(fn, *inputs):
    made = lambda p, *inputs: fn(*inputs)
    ranges = calibrate(made, {}, [inputs])
    ops = latency(lower(made, {}, ranges, *inputs), tight).ops
    return sum(o.activation_bytes for o in ops) / big.size

  # Operands of 8 bits and results of 8.
  assert moved(lambda x, y: x + y, big, small) == 2
  assert moved(lambda x, y: y + x, big, small) == 2
  assert moved(lambda x, y: x + y, big, big[::-1]) == 3
  assert moved(lambda x, y: y @ x, big, small) == 1
  assert moved(lambda x, y: x @ y.T, big, small) == 1
  assert moved(lambda x, y: x @ y, big, big.T) == 3
  assert moved(lambda x, y: x @ x, big, small) == 2


def test_bounds_and_buffering():
  fn = lowered(product, weight(16), R.normal(size=(1, K)).astype('f'))
  slow = INDEX_NPU._replace(dram_bytes_per_second=1e6, overhead_cycles=7)
  (op,) = latency(fn, slow).ops
  assert op.bound == 'memory'
  assert op.cycles == pytest.approx((K * N // 2 + 16) * 1000 + 7)
  serial = latency(fn, slow._replace(double_buffered=False)).ops[0]
  assert serial.cycles == pytest.approx(op.cycles + op.compute_cycles)


def test_a_loop_fetches_once_if_its_weights_fit():
  def fn(p, x):
    step = lambda h, v: (jnp.tanh(h @ p['w'] + v),) * 2
    return jax.lax.scan(step, jnp.zeros((1, N)), x)[1]

  integer = lowered(fn, weight(16), R.normal(size=(STEPS, 1, N)).astype('f'))
  stored = K * N // 2 + 16
  fits = latency(integer, INDEX_NPU._replace(weight_sram=stored))
  not_fits = latency(integer, INDEX_NPU._replace(weight_sram=stored - 1))
  assert fits.weight_bytes == stored
  assert not_fits.weight_bytes == STEPS * stored
  assert sum(o.macs for o in fits.ops) == STEPS * K * N
  assert 'ms' in str(fits)


def test_a_scan_over_layers_costs_what_they_do():
  like = weight(16)['w']
  codes = R.integers(0, 16, (4, K, N)).astype(np.uint8)
  stack, *layers = [
    QTensor(c, like.scale, like.codebook, 16) for c in (codes, *codes)
  ]
  x = R.normal(size=(3, K)).astype('f')

  def scanned(p, x):
    layer = lambda h, w: (jnp.tanh(h @ w), None)
    return jax.lax.scan(layer, x, p['w'])[0]

  def counted(p, x):
    return jax.lax.fori_loop(0, 4, lambda i, h: jnp.tanh(h @ p['w'][i]), x)

  def unrolled(p, x):
    for w in p['w']:
      x = jnp.tanh(x @ w)
    return x

  wanted = latency(lowered(unrolled, {'w': layers}, x), INDEX_NPU)
  assert wanted.weight_bytes == 4 * (K * N // 2 + 16)
  # The weight SRAM keeps nothing that the next step would read.
  for spec in (INDEX_NPU, INDEX_NPU._replace(weight_sram=0)):
    found = latency(lowered(scanned, {'w': stack}, x), spec)
    assert found.weight_bytes == wanted.weight_bytes
    assert found.cycles == pytest.approx(wanted.cycles)
  # No width is known of what is picked by a counter: bytes.
  picked = latency(lowered(counted, {'w': stack}, x), INDEX_NPU)
  assert picked.weight_bytes == 4 * K * N


def test_a_loop_around_layers_keeps_all_of_them_or_none():
  stack = {'w': R.normal(size=(4, K, N)).astype('f')}

  def fn(p, x):
    layer = lambda h, w: (jnp.tanh(h @ w), None)
    step = lambda h, v: (jax.lax.scan(layer, h + v, p['w'])[0], None)
    return jax.lax.scan(step, jnp.zeros((1, N)), x)[0]

  integer = lowered(fn, stack, R.normal(size=(STEPS, 1, N)).astype('f'))
  stored = 4 * K * N
  fits = latency(integer, INDEX_NPU._replace(weight_sram=stored))
  not_fits = latency(integer, INDEX_NPU._replace(weight_sram=stored - 1))
  assert fits.weight_bytes == stored
  assert not_fits.weight_bytes == STEPS * stored


def test_weights_that_are_closed_over_count():
  w = R.normal(size=(K, N)).astype('f')

  def cost_of(fn, x):
    return latency(lowered(fn, {}, x), INDEX_NPU).ops

  x = R.normal(size=(3, K)).astype('f')
  (dense,) = cost_of(lambda p, x: x @ w, x)
  assert dense.weight_bytes == K * N
  (first,) = cost_of(lambda p, x: jnp.einsum('nk,bk->nb', w.T[:9], x), x)
  assert first.weight_bytes == 9 * K
  # Between values there is no weight.
  (values,) = cost_of(lambda p, x: x @ x.T, x)
  assert values.weight_bytes == 0


def test_a_constant_is_no_weight_that_its_place_is_named_by():
  """The second product is named by the weight before it, or by an input."""
  other = R.normal(size=(N, 8)).astype('f')
  x = R.normal(size=(3, K)).astype('f')
  first, second = latency(
    lowered(lambda p, x: (x @ p['w']) @ other, weight(16), x), INDEX_NPU
  ).ops
  assert first.weight_bytes == K * N // 2 + 16
  assert second.weight_bytes == N * 8
  params = {'in': weight(16)['w']}
  *_, of_constant = latency(
    lowered(lambda p, x: (x @ p['in'], x @ other[:K]), params, x), INDEX_NPU
  ).ops
  assert of_constant.weight_bytes == K * 8


def test_a_weight_made_of_two_is_stored_in_bytes():
  gain = R.uniform(0.5, 2, N).astype('f')
  fn = lowered(
    lambda p, x: x @ (p['w'] * p['g']),
    {**weight(16), 'g': gain},
    R.normal(size=(3, K)).astype('f'),
  )
  (op,) = latency(fn, INDEX_NPU).ops
  assert op.weight_bytes == K * N


def test_values_beside_a_constant_are_no_weights():
  zeros = np.zeros((2, K), 'f')
  fn = lowered(
    lambda p, x: x @ jnp.concatenate([zeros, x]).T,
    {},
    R.normal(size=(3, K)).astype('f'),
  )
  assert latency(fn, INDEX_NPU).weight_bytes == 0


def test_the_dearest_branch_is_the_one_that_repeats():
  def fn(p, x):
    step = lambda h, _: (jnp.tanh(h @ p['w']), ())
    return jax.lax.cond(
      x[0, 0] > 0,
      lambda: jnp.tanh(jnp.tanh(x @ p['w']) @ p['w']),
      lambda: jax.lax.scan(step, x, length=STEPS)[0],
    )

  program = lowered(fn, weight(16), R.normal(size=(3, K)).astype('f'))
  macs = sum(op.macs for op in latency(program, INDEX_NPU).ops)
  assert macs == STEPS * 3 * K * N


def test_while_has_no_length():
  def fn(p, x):
    step = lambda s: (s[0] + 1, jnp.tanh(s[1] @ p['w']))
    return jax.lax.while_loop(lambda s: s[0] < 3, step, (0, x))[1]

  integer = lowered(fn, weight(16), R.normal(size=(1, K)).astype('f'))
  with pytest.raises(ValueError, match='no known length'):
    latency(integer, INDEX_NPU)


@pytest.mark.parametrize(
  'field', ['clock_hz', 'multipliers', 'lanes', 'dram_bytes_per_second']
)
@pytest.mark.parametrize('value', [0, -1, float('nan')])
def test_a_machine_without_speed_is_refused(field, value):
  fn = lowered(product, weight(16), np.ones((1, K), 'f'))
  with pytest.raises(ValueError, match=f'n-bit-index NPU: {field} is'):
    latency(fn, INDEX_NPU._replace(**{field: value}))


@pytest.mark.parametrize('fn', [product, jax.jit(product), None])
def test_only_lowered_functions_have_a_cost(fn):
  with pytest.raises(TypeError, match='expected an IntegerFunction: lower'):
    latency(fn, INDEX_NPU)
  with pytest.raises(TypeError, match='expected an IntegerFunction: lower'):
    ethos.latency(fn, ethos.machines()['ethos-u55-128'])


def test_a_picture_shows_the_dearest_operations(tmp_path):
  def deep(p, x):
    for _ in range(45):
      x = jnp.tanh(x @ p['w'])
    return x

  fn = lowered(deep, weight(16), R.normal(size=(1, K)).astype('f'))
  found = latency(fn, INDEX_NPU)
  assert len(found.ops) == 90
  path = tmp_path / 'deep.svg'
  with matplotlib.rc_context({'svg.fonttype': 'none'}):
    plot(found, path, title='deep')
  text = path.read_text()
  assert 'deep, n-bit-index NPU' in text and '50 other operations' in text
  assert all(f'>{part}<' in text for part in ('memory', 'overhead', 'weights'))
  empty = lowered(lambda p, x: x, {}, np.ones((1, K), 'f'))
  with pytest.raises(ValueError, match='costs anything'):
    plot(latency(empty, INDEX_NPU), path)
