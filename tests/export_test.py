"""A client's files on whatever can be exported: one file, as the module is."""

import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import small_models
import tensorflow as tf
import tensorflow_federated as tff

import tff_debias
from tff_debias import export
from tff_debias import models

L = tf.keras.layers
MAML = tff_debias.Maml(3, 0.5)
PROTO = tff_debias.Proto()
NONE = tff_debias.NoPersonalization()
LOSS = small_models.CLASSIFIER_LOSS


def mlp():
  return [
    L.Input((2, 3)),
    L.Rescaling(1 / 64, -2.0),
    L.Flatten(),
    L.Dense(5, 'tanh'),
    L.Dense(4),
  ]


def cnn():
  return [
    L.Input((8, 8, 1)),
    L.Rescaling(1 / 64, -2.0),
    L.Conv2D(3, 3, activation='relu'),
    L.MaxPool2D(),
    L.Flatten(),
    L.Dense(4),
  ]


def problem(layers=mlp, loss=LOSS, labels=3):
  """A Keras model, its Model, and raw examples of the first few classes."""
  tf.keras.utils.set_random_seed(0)
  keras_model = tf.keras.Sequential(layers())
  shape = keras_model.input_shape[1:]
  spec = (
    tf.TensorSpec([None, *shape], tf.uint8),
    tf.TensorSpec([None], tf.int32),
  )
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (9, *shape)).astype(np.uint8)
  y = np.arange(9) % labels
  return keras_model, models.from_keras(keras_model, loss, spec), (x, y)


def softmax(logits):
  exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exponentials / exponentials.sum(axis=1, keepdims=True)


def copy(keras_model):
  own = tf.keras.models.clone_model(keras_model)
  own.set_weights(keras_model.get_weights())
  return own


def expected(keras_model, personalization, x, y):
  """The probabilities, once more, with Keras and NumPy."""
  own, x = copy(keras_model), x.astype(np.float32)
  if personalization is PROTO:
    feature = tf.keras.Model(own.inputs, own.layers[-2].output)(x).numpy()
    logits = np.full((len(x), 4), -np.inf)
    for c in set(y):
      center = feature[y == c].mean(axis=0)
      logits[:, c] = -np.sum((feature - center) ** 2, axis=1)
    return softmax(logits)
  if personalization is MAML:
    own.compile(tf.keras.optimizers.SGD(0.5, global_clipnorm=0.3), LOSS)
    own.fit(x, y, batch_size=len(x), epochs=3, verbose=0)
  return softmax(own(x).numpy())


def run_export(tmp_path, personalization, layers=mlp, **options):
  keras_model, model, data = problem(layers, **options)
  exported = export.export_personalized_model(
    keras_model,
    model,
    personalization,
    data,
    tmp_path / 'model',
    max_grad_norm=0.3,
  )
  return keras_model, data, exported


def signatures(exported):
  interpreter = tf.lite.Interpreter(exported.tflite)
  return {
    name: interpreter.get_signature_runner(name)
    for name in interpreter.get_signature_list()
  }


@pytest.fixture(scope='module')
def export_once(tmp_path_factory):
  """Exports, but not twice the same."""
  return functools.cache(
    lambda *args: run_export(tmp_path_factory.mktemp('export'), *args)
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('personalization', 'layers'), [(MAML, cnn), (PROTO, cnn), (NONE, mlp)]
)
def test_all_files_classify_raw_input_as_the_method_does(
  export_once, personalization, layers
):
  keras_model, (x, y), exported = export_once(personalization, layers)
  right = expected(keras_model, personalization, x, y)
  keras = tf.keras.models.load_model(exported.keras)
  serve = tf.saved_model.load(exported.saved_model).signatures
  assert list(serve) == ['serving_default']
  infer = signatures(exported)['infer']
  # Batches of several sizes, one after the other.
  for batch in (slice(0, 9), slice(2, 3), slice(3, 7)):
    for found in (
      keras.predict(x[batch], verbose=0),
      serve['serving_default'](x=x[batch])['probabilities'],
      infer(x=x[batch])['probabilities'],
    ):
      np.testing.assert_allclose(found, right[batch], atol=2e-5)
  assert all(value < 1e-5 for value in exported.difference.values())
  assert ('on_device' in exported.difference) == (personalization is MAML)
  if personalization is PROTO:
    # A class without an example is never predicted, also not far away.
    found = keras.predict(x.astype(np.float32) * 1e6, verbose=0)
    assert np.isfinite(found).all() and (found[:, 3] == 0).all()


@pytest.mark.slow
def test_the_keras_file_needs_nothing_of_this_package(export_once, tmp_path):
  _, (x, _), exported = export_once(PROTO, cnn)
  program = (
    'import sys, numpy, tensorflow as tf;'
    f'model = tf.keras.models.load_model({exported.keras!r});'
    f'x = numpy.array({x.tolist()}, "uint8");'
    'print(model(x).numpy().argmax(1).tolist());'
    'assert not any("tff_" in name for name in sys.modules)'
  )
  said = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=True,
  ).stdout
  right = exported.keras_model.predict(x, verbose=0).argmax(axis=1)
  assert said.strip() == str(right.tolist())


def regularized():
  *first, last = mlp()
  return [*first, L.Dense(4, kernel_regularizer=tf.keras.regularizers.L2(0.1))]


@pytest.mark.parametrize('layers', [cnn, regularized])
def test_tensorflow_lite_personalizes_on_the_device(
  export_once, tmp_path, layers
):
  keras_model, (x, y), exported = export_once(MAML, layers)
  device, own = signatures(exported), copy(keras_model)
  y = y.astype(np.int32)

  def infer():
    return device['infer'](x=x)['probabilities']

  def personalize(steps, x, y):
    """Takes each step once with Keras and NumPy, too."""
    for step in steps:
      with tf.GradientTape() as tape:
        right = LOSS(y, own(x)) + sum(own.losses)
      step = np.array(step, np.int32)
      found = device['personalize'](x=x, y=y, step=step)
      np.testing.assert_allclose(found['loss'], right, rtol=1e-4)
      assert found['num_steps'] == 3
      gradients = tape.gradient(right, own.trainable_variables)
      norm = np.sqrt(sum(np.sum(g.numpy() ** 2) for g in gradients))
      for variable, g in zip(own.trainable_variables, gradients, strict=True):
        variable.assign_sub(0.5 * g * min(1, 0.3 / norm))

  personalized = infer()
  meta = softmax(keras_model(x).numpy())
  assert np.abs(meta - personalized).max() > 0.01
  personalize(range(3), x, y)
  np.testing.assert_allclose(infer(), personalized, atol=1e-5)
  np.testing.assert_allclose(infer(), softmax(own(x).numpy()), atol=1e-5)

  # Another number of examples; then what was saved comes back.
  path = np.array(str(tmp_path / 'weights'), bytes)
  device['save'](path=path)
  personalize([3], x[:4], y[:4])
  assert np.abs(infer() - personalized).max() > 1e-3
  device = signatures(exported)
  device['personalize'](x=x, y=y, step=np.array(0, np.int32))
  assert np.abs(infer() - personalized).max() > 1e-3
  device['restore'](path=path)
  np.testing.assert_allclose(infer(), personalized, atol=1e-5)


def test_an_earlier_export_is_replaced_if_the_new_one_is_right(tmp_path):
  keras_model, *_ = run_export(tmp_path, NONE)
  (tmp_path / 'model' / 'thesis.txt').write_text('mine')
  before = small_models.snapshot(tmp_path)
  _, model, data = problem()
  wrong = tf.keras.Sequential([*mlp()[:-2], L.Dense(5, 'relu'), L.Dense(4)])
  wrong.set_weights(keras_model.get_weights())
  with pytest.raises(export.ExportError, match='clone of .* gives other'):
    export.export_personalized_model(
      wrong, model, MAML, data, tmp_path / 'model'
    )
  assert small_models.snapshot(tmp_path) == before
  run_export(tmp_path, PROTO)
  after = small_models.snapshot(tmp_path)
  assert after.keys() == before.keys()
  for name in ('model.keras', 'saved_model/saved_model.pb', 'model.tflite'):
    assert after[f'model/{name}'] != before[f'model/{name}']


class Cautious(tff_debias.Maml):
  """MAML that goes back half of the way."""

  def personalize(self, model, weights, dataset, max_grad_norm):
    adapted = super().personalize(model, weights, dataset, max_grad_norm)
    return tf.nest.map_structure(lambda w, v: (w + v) / 2, weights, adapted)


def test_a_personalization_of_ones_own_that_makes_weights_is_exported(tmp_path):
  keras_model, (x, _), exported = run_export(tmp_path, Cautious(3, 0.5))
  assert list(signatures(exported)) == ['infer']
  _, model, data = problem()
  maml = export.personalized_keras_model(
    keras_model, model, MAML, data, max_grad_norm=0.3
  )
  own = copy(keras_model)
  own.set_weights(
    [
      (one + other) / 2
      for one, other in zip(
        keras_model.get_weights(), maml.get_weights(), strict=True
      )
    ]
  )
  np.testing.assert_allclose(
    exported.keras_model(x), softmax(own(x).numpy()), atol=1e-5
  )


class Biased(tff_debias.NoPersonalization):
  """One that makes neither weights nor prototypes."""

  def personalize(self, model, weights, dataset, max_grad_norm):
    return weights, tf.zeros([4])

  def evaluate(self, model, personalized, batch):
    return super().evaluate(model, personalized[0], batch)


def build(personalization, layers=mlp, data=None, **options):
  """The personalized model in memory."""
  keras_model, model, examples = problem(layers, **options)
  personalized = export.personalized_keras_model(
    keras_model, model, personalization, data or examples
  )
  return personalized(examples[0]).numpy(), keras_model(examples[0]).numpy()


def test_another_personalization_is_refused():
  with pytest.raises(export.ExportError, match='Biased cannot .* a tuple, and'):
    build(Biased())


def test_a_nested_model_is_refused_for_prototypes_only():
  def nested():
    return [L.Input((2, 3)), tf.keras.Sequential(mlp())]

  with pytest.raises(export.ExportError, match='nested'):
    build(PROTO, nested)
  build(MAML, nested)


def test_a_personalization_of_ones_own_has_its_own_bound():
  keras_model, model, data = problem()
  # A large last layer, which gives the first one gradients far above 10.
  *first, kernel, bias = keras_model.get_weights()
  keras_model.set_weights([*first, 200 * kernel, bias])
  free, clipped = small_models.FreeMaml(1, 0.01), tff_debias.Maml(1, 0.01)
  found, same, other = (
    export.personalized_keras_model(
      keras_model, model, personalization, data, **options
    ).get_weights()
    for personalization, options in (
      (free, {}),
      (clipped, {'max_grad_norm': math.inf}),
      (clipped, {}),
    )
  )
  small_models.assert_same(found, same)
  assert max(np.abs(f - o).max() for f, o in zip(found, other)) > 0.01  # noqa: B905


def test_a_named_feature_behind_a_branch():
  tf.keras.utils.set_random_seed(0)
  inputs = L.Input((3,))
  hidden = L.Dense(5, 'tanh', name='hidden')(inputs)
  outputs = L.Dense(2, 'softmax')(L.Concatenate()([inputs, hidden]))
  keras_model = tf.keras.Model(inputs, outputs)
  loss = tf.keras.losses.SparseCategoricalCrossentropy()
  spec = (tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int32))
  x, y = np.random.default_rng(0).normal(size=(6, 3)), np.arange(6) % 2
  x = x.astype(np.float32)
  model = models.from_keras(keras_model, loss, spec, feature_layer='hidden')
  found = export.personalized_keras_model(
    keras_model, model, PROTO, (x, y), feature_layer='hidden'
  )(x).numpy()
  feature = tf.keras.Model(inputs, hidden)(x).numpy()
  centers = np.stack([feature[y == c].mean(axis=0) for c in (0, 1)])
  distances = np.sum((feature[:, None] - centers) ** 2, axis=-1)
  np.testing.assert_allclose(found, softmax(-distances), atol=1e-5)


PROBABILITY_LOSS = tf.keras.losses.SparseCategoricalCrossentropy()


@pytest.mark.parametrize(
  'ending',
  [
    [L.Softmax],
    [L.Softmax, lambda: L.Reshape((4,))],
    [lambda: L.Activation(tf.nn.softmax), lambda: L.Activation('linear')],
  ],
)
def test_a_softmax_wherever_it_is_is_not_applied_twice(ending):
  found, right = build(
    NONE, lambda: [*mlp(), *(make() for make in ending)], loss=PROBABILITY_LOSS
  )
  np.testing.assert_allclose(found, right, atol=1e-6)


def test_small_logits_are_logits():
  def layers():
    *first, _ = mlp()
    return [*first, L.Dense(4, kernel_initializer='zeros')]

  found, right = build(NONE, layers)
  assert not right.any()
  np.testing.assert_allclose(found, 0.25)


def test_neither_logits_nor_probabilities_are_refused():
  with pytest.raises(export.ExportError, match='neither logits nor .* not 1'):
    build(NONE, lambda: [*mlp(), L.Activation('sigmoid')])


@pytest.mark.parametrize(('from_logits', 'labels'), [(False, 2), (True, 1)])
def test_one_output_gives_both_classes(from_logits, labels):
  def layers():
    return [*mlp()[:-1], L.Dense(1, None if from_logits else 'sigmoid')]

  loss = tf.keras.losses.BinaryCrossentropy(from_logits)
  keras_model, model, (x, y) = problem(layers, loss, labels)
  found = export.personalized_keras_model(
    keras_model, model, MAML, (x, y), max_grad_norm=0.3
  )(x)
  own = copy(keras_model)
  own.compile(tf.keras.optimizers.SGD(0.5, global_clipnorm=0.3), loss)
  own.fit(x.astype('f'), y, batch_size=9, epochs=3, verbose=0)
  right = own(x).numpy()[:, 0]
  if from_logits:
    right = 1 / (1 + np.exp(-right))
  np.testing.assert_allclose(found, np.stack([1 - right, right], 1), atol=1e-5)


def test_random_steps_are_not_compared(tmp_path):
  def layers():
    return [*mlp()[:-1], L.Dropout(0.5), L.Dense(4)]

  _, _, exported = run_export(tmp_path, MAML, layers)
  assert max(exported.difference.values()) < 1e-5


def test_a_lambda_cannot_be_read_again(tmp_path):
  with pytest.raises(export.ExportError, match='Lambda or a layer of your own'):
    run_export(tmp_path, NONE, lambda: [*mlp(), L.Lambda(lambda t: t / 2)])


def functional_model():
  """The model of `problem` as a functional model, of TensorFlow's operations.

  TFF runs a functional model that it made of a Keras model only inside of its
  own computations.
  """
  keras_model, model, _ = problem()

  @tf.function
  def predict(weights, x, training):
    del training
    kernel, bias, last_kernel, last_bias = weights[0]
    x = tf.reshape(tf.cast(x, tf.float32) / 64 - 2, [-1, 6])
    return tf.tanh(x @ kernel + bias) @ last_kernel + last_bias

  return tff.learning.models.FunctionalModel(
    initial_weights=(tuple(keras_model.get_weights()), ()),
    predict_on_batch_fn=predict,
    loss_fn=lambda output, label, sample_weight=None: LOSS(label, output),
    input_spec=model.input_spec,
  )


def test_a_functional_model_is_personalized_and_the_meta_model_unchanged():
  keras_model, _, (x, y) = problem()
  before = keras_model.get_weights()
  personalized = export.personalized_keras_model(
    keras_model, functional_model(), MAML, (x, y), max_grad_norm=0.3
  )
  np.testing.assert_allclose(
    personalized(x), expected(keras_model, MAML, x, y), atol=2e-5
  )
  small_models.assert_same(keras_model.get_weights(), before)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x, y: (x[:0], y[:0]), r'got \[0, 2, 3\],.* one example at least'),
    (lambda x, y: (x[:, :1], y), r'\[examples, 2, 3\], got \[9, 1, 3\]'),
    (lambda x, y: (x, y[:-1]), r'integers, .* got int64 \[8\]'),
    (lambda x, y: (x, y + 0.5), r'integers, .* got float64'),
    (lambda x, y: (x, y + 2), 'must be 0 to 3, got 4'),
    (lambda x, y: (x, y - 1), 'must be 0 to 3, got -1'),
    (lambda x, y: (x + 0.5, y), r'must be uint8, .*, got \d+\.5\.'),
    (lambda x, y: (x - 256.0, y), r'must be uint8, .*, got -\d+\.0\.'),
  ],
)
def test_wrong_examples_are_refused(change, message):
  with pytest.raises(export.ExportError, match=message):
    build(MAML, data=change(*problem()[-1]))


def test_what_cannot_be_exported_is_refused():
  keras_model, model, data = problem()
  other = tf.keras.Sequential([L.Input((2, 3)), *cnn()[4:]])
  regression = small_models.linear_model()

  class Subclassed(tf.keras.Model):
    pass

  words = L.StringLookup(output_mode='multi_hot')
  words.adapt(['a', 'b'])
  text = tf.keras.Sequential([L.Input((2,), dtype='string'), words, L.Dense(4)])
  for error, message, arguments in (
    (export.ExportError, 'with a vocabulary', (text, model)),
    (TypeError, 'model must be .*from_keras', (keras_model, keras_model)),
    (export.ExportError, 'that the Model was made of', (other, model)),
    (export.ExportError, 'Only a classifier', (keras_model, regression)),
    (
      export.ExportError,
      'functional or seq.* Subclassed',
      (Subclassed(), model),
    ),
  ):
    with pytest.raises(error, match=message):
      export.personalized_keras_model(*arguments, MAML, data)
  keras_model.set_weights([w + np.nan for w in keras_model.get_weights()])
  with pytest.raises(export.ExportError, match='not finite'):
    export.personalized_keras_model(keras_model, model, MAML, data)
