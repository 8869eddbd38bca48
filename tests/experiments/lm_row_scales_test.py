"""Row scales of the tied embedding, through the language model's stages."""

import jax
import numpy as np
import pytest

from experiments import lm_sensitivity, lm_stages, methods
from experiments.configs.lm import wikitext2
from s8bqat_jax import quantizers, training
from s8bqat_jax.artifacts import packed_file, qtensor
from s8bqat_jax.quantizers import tree as trees
from tests.experiments import toy_language

pytestmark = pytest.mark.usefixtures('quick_fit')
EMBED = 'embed/embedding'


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
  """Without row scales, and with them for the embedding, of a random model."""
  folder = tmp_path_factory.mktemp('rows')
  config = toy_language.config(folder, train=200, held_out=60)
  config.train.log_every = 4
  config.choices = (2, 3)
  with_rows = config.copy_and_resolve_references()
  with_rows.row_scales = EMBED
  corpora = lm_stages.Corpora(config)
  made = [
    lm_stages.Stages(c, corpora, folder / 'stages', progress=False)
    for c in (config, with_rows)
  ]
  path = folder / 'float.safetensors'
  made[0]._save(path, made[0].model.init(jax.random.key(0)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lm_stages.Stages, 'float_model', lambda self: path)
    yield made


def _shipped(path):
  return trees.quantized(packed_file.load(path).tree)


def test_only_stages_that_rows_change_have_folders_of_their_own(stages):
  plain, rows = stages
  bits = {EMBED: 3, 'layer_0/ffn/up/kernel': 2}
  for method in ('ptq lloyd-max', 'straight-through', 'admm'):
    for width in (3, bits):
      one, other = (s.train_folder(method, width) for s in stages)
      assert one != other and one.parent == other.parent
  for method in ('float', 'float continued'):
    assert plain.train_folder(method, 32) == rows.train_folder(method, 32)
  of = [lm_sensitivity.Sensitivity(s) for s in stages]
  folder = lambda f, stage: f.stages.folder('sensitivity', *stage(f))
  kinds = lm_sensitivity.Sensitivity
  for stage in (kinds._trace_stage, kinds._search_stage):
    assert folder(of[0], stage) == folder(of[1], stage)
  assert folder(of[0], kinds._kl_stage) != folder(of[1], kinds._kl_stage)


def test_the_embedding_ships_row_scales_and_predictions_see_them(stages):
  _, rows = stages
  found = lm_sensitivity.Sensitivity(rows)
  bits = {n: 2 if n == EMBED else 3 for n in found.sizes()}
  shipped = _shipped(rows.train('ptq lloyd-max', bits))
  vocabulary = shipped[EMBED].shape[0]
  assert shipped[EMBED].scale.shape == (vocabulary, 1)
  assert {np.ndim(q.scale) for n, q in shipped.items() if n != EMBED} == {0}
  assert {n: q.bits for n, q in shipped.items()} == bits
  views = trees.named(found.quantized(bits))
  for name, q in shipped.items():
    np.testing.assert_array_equal(qtensor.dequantize(q), views[name])


def test_bytes_count_the_scales_of_rows(stages):
  plain, rows = (lm_sensitivity.Sensitivity(s) for s in stages)
  vocabulary = len(trees.named(plain.stages.float_params())[EMBED])
  for bits in (2, 3):
    more = rows.sizes()[EMBED][bits] - plain.sizes()[EMBED][bits]
    # Beside the scales themselves, their shape in the header.
    assert 4 * (vocabulary - 1) <= more <= 4 * (vocabulary - 1) + 16
    for found in (plain, rows):
      file = found.stages.train('ptq lloyd-max', bits).stat().st_size
      assert found._file_of(dict.fromkeys(found.sizes(), bits)) == file


def test_admm_trains_them_and_logs_the_other_tensors_by_the_usual_names(stages):
  _, rows = stages
  bits = dict.fromkeys(lm_sensitivity.Sensitivity(rows).sizes(), 2)
  path = rows.train('admm', bits)
  assert _shipped(path)[EMBED].scale.shape[1:] == (1,)
  logged = training.read_metrics(path.parent)
  names = {name for row in logged for name in row}
  for name in ('primal', 'dual', 'distance', '1/primal', '1/dual', 'frozen'):
    assert f'quantizer/{name}' in names
  metrics = rows.evaluate(path)
  assert metrics['bytes'] == path.stat().st_size


def test_a_pattern_without_a_tensor_is_an_error(stages):
  config = stages[1]._with_method('admm', {'head/kernel': 3})
  with pytest.raises(ValueError, match=f"row_scales is '{EMBED}', expected"):
    lm_stages.make_quantizer(config, 'admm', {'head/kernel': 3})


@pytest.mark.parametrize('pattern', ['.*', 'layer_0/.*', 'nothing'])
def test_only_rows_of_embeddings_have_scales(stages, tmp_path, pattern):
  config = stages[1].config.copy_and_resolve_references()
  config.row_scales = pattern
  with pytest.raises(ValueError, match='expected tables of embeddings alone'):
    lm_stages.Stages(config, stages[1].corpora, tmp_path)


_ABLE = [name for name, method in methods.METHODS.items() if method.rows]
_RUN = methods.Run(20, lambda step: 1e-2)


@pytest.mark.parametrize('name', _ABLE)
def test_methods_give_rows_scales_and_other_weights_one(name):
  w = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
  params = {'a': {'kernel': w}, 'embed': w}
  rule = quantizers.Rule
  member = methods.make(
    name, 2, (rule('.*', 2),), _RUN, row_rules=(rule('em.*', 3),)
  )
  encoded = member.encode(params, member.init(params))
  assert np.ndim(encoded['a']['kernel'].scale) == 0
  assert encoded['embed'].scale.shape == (12, 1)
  assert (encoded['a']['kernel'].bits, encoded['embed'].bits) == (2, 3)
  alone = methods.make(name, 2, (), _RUN, row_rules=(rule('.*', 3),))
  whole = alone.encode(params, alone.init(params))
  assert whole['a']['kernel'].scale.shape == (12, 1)


def test_methods_without_row_scales_say_so():
  for name in set(methods.METHODS) - set(_ABLE):
    with pytest.raises(ValueError, match=f'{name!r} has no row scales'):
      rules = (quantizers.Rule('.*', 3),)
      methods.make(name, 3, (), _RUN, row_rules=rules)


def test_the_config_of_rows_shares_the_stages_of_the_one_without():
  plain, rows = (
    wikitext2.get_config(f'size=1m,rows={x}') for x in ('no', 'yes')
  )
  assert plain.to_dict() == wikitext2.get_config('size=1m').to_dict()
  assert (plain.name, plain.row_scales, plain.stages) == (
    'lm_wikitext2_1m', '', '',
  )  # fmt: skip
  assert rows.name == 'lm_wikitext2_1m_rows' and rows.stages == plain.name
  assert rows.row_scales == EMBED
  with pytest.raises(ValueError, match='expected one of no, yes'):
    wikitext2.get_config('rows=maybe')
