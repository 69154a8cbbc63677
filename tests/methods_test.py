import inspect

import numpy as np
import pytest
import small_models
import tensorflow as tf

import tff_debias
from tff_debias import learning_process

MAML = tff_debias.Maml(num_steps=1, learning_rate=0.3)
PROTO = tff_debias.Proto()
NONE = tff_debias.NoPersonalization()
PLAIN = tff_debias.NoCorrection()
ALPHA = {'alpha': 0.4, 'decay': 0.1}
DYN = tff_debias.Dyn(**ALPHA)
SCAF = tff_debias.Scaf(equal_steps=False, decay=0.1)

# Each builder, the personalization if it takes one, the hyperparameters of its
# correction, and its pair.
METHODS = {
  'fed_avg': (tff_debias.build_fed_avg, (), {}, NONE, PLAIN),
  'per_fed_avg': (tff_debias.build_per_fed_avg, (MAML,), {}, MAML, PLAIN),
  'fed_dyn': (tff_debias.build_fed_dyn, (), ALPHA, NONE, DYN),
  'pfl_dyn_maml': (tff_debias.build_pfl_dyn, (MAML,), ALPHA, MAML, DYN),
  'pfl_dyn_proto': (tff_debias.build_pfl_dyn, (PROTO,), ALPHA, PROTO, DYN),
  'scaffold': (tff_debias.build_scaffold, (), {'decay': 0.1}, NONE, SCAF),
  'pfl_scaf': (tff_debias.build_pfl_scaf, (MAML,), {'decay': 0.1}, MAML, SCAF),
  'equal_steps': (
    tff_debias.build_pfl_scaf,
    (PROTO,),
    {'equal_steps': True},
    PROTO,
    tff_debias.Scaf(equal_steps=True),
  ),
  'fed_prox': (
    tff_debias.build_fed_prox,
    (),
    {'mu': 0.5},
    NONE,
    tff_debias.Prox(0.5),
  ),
}


def network():
  tf.keras.utils.set_random_seed(1)
  return tff_debias.from_keras(
    tf.keras.Sequential(
      [
        tf.keras.layers.Input((3,)),
        tf.keras.layers.Dense(8, 'tanh'),
        tf.keras.layers.Dense(3),
      ]
    ),
    small_models.CLASSIFIER_LOSS,
    small_models.CLASSIFIER_SPEC,
  )


def rounds(process):
  """The models after two rounds of other participants."""
  state, found = process.initialize(), []
  for t in range(2):
    participants = [
      small_models.client(f'{i}', *small_models.batch(9, seed=i), 4, 6)
      for i in (t, t + 1)
    ]
    state, _ = process.next(state, participants)
    found.append(process.get_model_weights(state).trainable)
    if state.finalizer['initial']:
      found.append(tff_debias.get_all_model_weights(state).trainable)
  return found


@pytest.mark.parametrize('name', METHODS)
def test_a_named_method_is_the_process_of_its_pair(runtime, tmp_path, name):
  build, personalization, hparams, *pair = METHODS[name]
  model = network()

  def options(folder):
    options = {'learning_rate': 0.3, 'max_grad_norm': 0.7, 'seed': 3}
    if 'storage' in inspect.signature(build).parameters:
      options['storage'] = tff_debias.ClientStorage(tmp_path / folder)
      options.update(num_clients=5, track_all=True)
    return options

  found = rounds(build(model, *personalization, **hparams, **options('named')))
  expected = rounds(
    learning_process.build_learning_process(model, *pair, **options('pair'))
  )
  small_models.assert_same(found, expected)
  assert np.abs(found[-1][0] - model.initial_weights.trainable[0]).max() > 1e-3


@pytest.mark.parametrize('name', METHODS)
def test_every_argument_is_passed_on(monkeypatch, name):
  build, personalization, hparams, *pair = METHODS[name]
  monkeypatch.setattr(
    learning_process,
    'build_learning_process',
    lambda *args, **options: (list(args), options),
  )
  own = {'model', 'personalization', *hparams, 'decay', 'equal_steps'}
  parameters = set(inspect.signature(build).parameters) - own
  options = {parameter: object() for parameter in parameters}
  assert build('model', *personalization, **hparams, **options) == (
    ['model', *pair],
    options,
  )
  # It takes all arguments that are right for its pair.
  correction = pair[1]
  if correction.initial_state((tf.zeros([]),)):
    wrong = {'client_weighting'}
  else:
    wrong = {'num_clients', 'storage', 'track_all'}
  if not correction.allows_client_optimizer:
    wrong.add('client_optimizer_fn')
  if not correction.allows_server_optimizer:
    wrong.add('server_optimizer_fn')
  wrong |= {'model', 'personalization', 'correction'}
  theirs = inspect.signature(tff_debias.build_learning_process).parameters
  assert parameters == set(theirs) - wrong
