import os
import subprocess
import sys

import numpy as np
import problems
import pytest
import tensorflow as tf

from tff_debias import export
from tff_debias import models
from tff_debias import personalizations
from tff_debias.personalizations import base

MAML = personalizations.Maml(3, 0.5)
PROTO = personalizations.Proto()


def mlp():
  return [
    tf.keras.layers.Input((2, 3)),
    tf.keras.layers.Rescaling(1 / 64, -2.0),
    tf.keras.layers.Flatten(),
    tf.keras.layers.Dense(5, 'tanh'),
    tf.keras.layers.Dense(4),
  ]


def cnn():
  return [
    tf.keras.layers.Input((8, 8, 1)),
    tf.keras.layers.Rescaling(1 / 64, -2.0),
    tf.keras.layers.Conv2D(3, 3, activation='relu'),
    tf.keras.layers.MaxPool2D(),
    tf.keras.layers.Flatten(),
    tf.keras.layers.Dense(4),
  ]


def problem(
  layers=mlp, loss=problems.CLASSIFIER_LOSS, labels=3, num_examples=9
):
  """A Keras model, its Model, and raw examples of the first few classes."""
  tf.keras.utils.set_random_seed(0)
  keras_model = tf.keras.Sequential(layers())
  shape = keras_model.input_shape[1:]
  spec = (
    tf.TensorSpec([None, *shape], tf.uint8),
    tf.TensorSpec([None], tf.int32),
  )
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (num_examples, *shape)).astype(np.uint8)
  y = np.arange(num_examples) % labels
  return keras_model, models.from_keras(keras_model, loss, spec), (x, y)


def softmax(logits):
  exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exponentials / exponentials.sum(axis=1, keepdims=True)


def expected(keras_model, personalization, x, y):
  """The probabilities, once more, with Keras and NumPy."""
  own = tf.keras.models.clone_model(keras_model)
  own.set_weights(keras_model.get_weights())
  x = x.astype(np.float32)
  if isinstance(personalization, personalizations.Proto):
    feature = tf.keras.Model(own.inputs, own.layers[-2].output)(x).numpy()
    logits = np.full((len(x), 4), -np.inf)
    for c in set(y):
      center = feature[y == c].mean(axis=0)
      logits[:, c] = -np.sum((feature - center) ** 2, axis=1)
    return softmax(logits)
  if isinstance(personalization, personalizations.Maml):
    own.compile(
      tf.keras.optimizers.SGD(
        personalization.learning_rate, global_clipnorm=0.3
      ),
      problems.CLASSIFIER_LOSS,
    )
    own.fit(
      x,
      y,
      batch_size=len(x),
      epochs=personalization.num_steps,
      verbose=0,
    )
  return softmax(own(x).numpy())


def signatures(path):
  interpreter = tf.lite.Interpreter(path)
  return {
    name: interpreter.get_signature_runner(name)
    for name in interpreter.get_signature_list()
  }


def run_export(tmp_path, personalization, layers=mlp, **options):
  keras_model, model, data = problem(layers)
  exported = export.export_personalized_model(
    keras_model,
    model,
    personalization,
    data,
    tmp_path / 'model',
    max_grad_norm=0.3,
    **options,
  )
  return keras_model, data, exported


@pytest.mark.parametrize('layers', [mlp, cnn])
@pytest.mark.parametrize(
  'personalization', [MAML, PROTO, personalizations.NoPersonalization()]
)
def test_all_files_classify_raw_input_as_the_method_does(
  tmp_path, personalization, layers
):
  keras_model, (x, y), exported = run_export(tmp_path, personalization, layers)
  right = expected(keras_model, personalization, x, y)
  keras = tf.keras.models.load_model(exported.keras)
  serve = tf.saved_model.load(exported.saved_model).signatures
  assert list(serve) == ['serving_default']
  infer = signatures(exported.tflite)['infer']
  # Batches of several sizes, one after the other.
  for batch in (slice(0, 9), slice(2, 3), slice(3, 7)):
    for found in (
      keras.predict(x[batch], verbose=0),
      serve['serving_default'](x=x[batch])['probabilities'],
      infer(x=x[batch])['probabilities'],
    ):
      np.testing.assert_allclose(found, right[batch], atol=2e-5)
  assert all(value < 1e-5 for value in exported.difference.values())
  assert os.listdir(tmp_path) == ['model']


@pytest.mark.parametrize('layers', [mlp, cnn])
def test_tensorflow_lite_personalizes_on_the_device(tmp_path, layers):
  keras_model, (x, y), exported = run_export(tmp_path, MAML, layers)
  device = signatures(exported.tflite)
  y = y.astype(np.int32)

  def infer():
    return device['infer'](x=x)['probabilities']

  def personalize(steps, x, y):
    """Takes each step once with Keras and NumPy, too."""
    for step in steps:
      right = loss(y, own(x)).numpy()
      step = np.array(step, np.int32)
      found = device['personalize'](x=x, y=y, step=step)
      np.testing.assert_allclose(found['loss'], right, rtol=1e-4)
      assert found['num_steps'] == 3
      with tf.GradientTape() as tape:
        value = loss(y, own(x))
      gradients = tape.gradient(value, own.trainable_variables)
      norm = np.sqrt(sum(np.sum(g.numpy() ** 2) for g in gradients))
      for variable, g in zip(own.trainable_variables, gradients, strict=True):
        variable.assign_sub(0.5 * g * min(1, 0.3 / norm))

  loss = problems.CLASSIFIER_LOSS
  own = tf.keras.models.clone_model(keras_model)
  own.set_weights(keras_model.get_weights())
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
  again = signatures(exported.tflite)
  again['personalize'](x=x, y=y, step=np.array(0, np.int32))
  assert (
    np.abs(again['infer'](x=x)['probabilities'] - personalized).max() > 1e-3
  )
  again['restore'](path=path)
  np.testing.assert_allclose(
    again['infer'](x=x)['probabilities'], personalized, atol=1e-5
  )


def test_a_class_without_an_example_is_never_predicted(tmp_path):
  _, (x, _), exported = run_export(tmp_path, PROTO)
  for batch in (x, x.astype(np.float32) * 1e6):
    found = exported.keras_model.predict(batch, verbose=0)
    assert np.isfinite(found).all()
    assert (found[:, 3] == 0).all()


def test_the_keras_file_needs_nothing_of_this_package(tmp_path):
  _, (x, _), exported = run_export(tmp_path, PROTO)
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


def test_a_functional_model_and_a_named_feature():
  tf.keras.utils.set_random_seed(0)
  inputs = tf.keras.layers.Input((3,))
  hidden = tf.keras.layers.Dense(5, 'tanh', name='hidden')(inputs)
  both = tf.keras.layers.Concatenate()([inputs, hidden])
  outputs = tf.keras.layers.Dense(2, 'softmax')(both)
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
  # Its own softmax is not applied twice.
  plain = export.personalized_keras_model(
    keras_model, model, personalizations.NoPersonalization(), (x, y)
  )
  np.testing.assert_allclose(plain(x), keras_model(x), atol=1e-6)


def test_does_not_change_the_meta_model(tmp_path):
  keras_model, model, data = problem()
  before = keras_model.get_weights()
  personalized = export.personalized_keras_model(keras_model, model, MAML, data)
  for one, other in zip(before, keras_model.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)
  assert np.abs(personalized.get_weights()[0] - before[0]).max() > 0


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path):
  folder = tmp_path / 'model'
  run_export(tmp_path, MAML)
  first = (folder / 'model.tflite').read_bytes()
  run_export(tmp_path, PROTO)
  assert (folder / 'model.tflite').read_bytes() != first
  assert os.listdir(tmp_path) == ['model']
  (folder / 'thesis.txt').write_text('mine')
  before = problems.snapshot(tmp_path)
  with pytest.raises(export.ExportError, match='something else.*thesis.txt'):
    run_export(tmp_path, MAML)
  assert problems.snapshot(tmp_path) == before


def test_a_failed_export_leaves_the_earlier_one(tmp_path, monkeypatch):
  run_export(tmp_path, MAML)
  before = problems.snapshot(tmp_path)

  def full_disk(*args, **options):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(export, '_convert', full_disk)
  with pytest.raises(OSError, match='No space'):
    run_export(tmp_path, PROTO)
  assert problems.snapshot(tmp_path) == before


def test_files_that_do_not_agree_are_an_error(tmp_path):
  keras_model, model, data = problem()
  wrong = tf.keras.Sequential(mlp()[:-2])
  wrong.add(tf.keras.layers.Dense(5, 'relu'))
  wrong.add(tf.keras.layers.Dense(4))
  wrong.set_weights(keras_model.get_weights())
  with pytest.raises(export.ExportError, match='model.keras gives other'):
    export.export_personalized_model(
      wrong, model, MAML, data, tmp_path / 'model'
    )
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x, y: (x[:0], y[:0]), 'at least one example'),
    (lambda x, y: (x[:, :1], y), r'\[examples, 2, 3\], got \[9, 1, 3\]'),
    (lambda x, y: (x, y[:-1]), r'9 integers, .* got int64 \[8\]'),
    (lambda x, y: (x, y + 0.5), r'integers, .* got float64'),
    (lambda x, y: (x, y + 2), 'must be 0 to 3, got 4'),
    (lambda x, y: (x, y - 1), 'must be 0 to 3, got -1'),
    (lambda x, y: (np.where(y == 2, np.nan, x.T).T, y), 'finite, .* example 2'),
    (lambda x, y: (x.astype(str), y), 'must be numbers, got <U'),
    (lambda x, y: (x + 300, y), r'must be uint8, .*, got \d{3}\.'),
    (lambda x, y: (x + 0.5, y), r'must be uint8, .*, got \d+\.5\.'),
    (lambda x, y: (x - 256.0, y), r'must be uint8, .*, got -\d+\.0\.'),
    (lambda x, y: (x,), 'two arrays'),
  ],
)
def test_wrong_examples_are_refused(change, message):
  keras_model, model, data = problem()
  with pytest.raises(export.ExportError, match=message):
    export.personalized_keras_model(keras_model, model, MAML, change(*data))


def test_what_cannot_be_exported_is_refused(tmp_path):
  keras_model, model, data = problem()

  class Own(base.Personalization):
    meta_loss = personalize = evaluate = None

  with pytest.raises(export.ExportError, match='Only Maml, Proto'):
    export.personalized_keras_model(keras_model, model, Own(), data)
  other = tf.keras.Sequential([tf.keras.layers.Input((2, 3)), *cnn()[4:]])
  with pytest.raises(export.ExportError, match='that the Model was made of'):
    export.personalized_keras_model(other, model, MAML, data)
  regression = problems.linear_model()
  with pytest.raises(export.ExportError, match='Only a classifier'):
    export.personalized_keras_model(keras_model, regression, MAML, data)
  (tmp_path / 'file').write_text('')
  with pytest.raises(export.ExportError, match='no directory'):
    export.export_personalized_model(
      keras_model, model, MAML, data, tmp_path / 'file'
    )
  keras_model.set_weights([w + np.nan for w in keras_model.get_weights()])
  with pytest.raises(export.ExportError, match='not finite'):
    export.personalized_keras_model(keras_model, model, MAML, data)


def test_a_nested_model_is_refused_for_prototypes_only():
  tf.keras.utils.set_random_seed(0)
  inputs = tf.keras.layers.Input((2, 3))
  keras_model = tf.keras.Model(inputs, tf.keras.Sequential(mlp())(inputs))
  _, _, (x, y) = problem()
  spec = (tf.TensorSpec([None, 2, 3]), tf.TensorSpec([None], tf.int32))
  model = models.from_keras(keras_model, problems.CLASSIFIER_LOSS, spec)
  with pytest.raises(export.ExportError, match='nested'):
    export.personalized_keras_model(keras_model, model, PROTO, (x, y))
  assert export.personalized_keras_model(keras_model, model, MAML, (x, y))
