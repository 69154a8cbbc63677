import exporting
import numpy as np
import pytest
import tensorflow as tf

from tff_debias import export
from tff_debias import models
from tff_debias import personalizations


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
    keras_model, model, exporting.PROTO, (x, y), feature_layer='hidden'
  )(x).numpy()
  feature = tf.keras.Model(inputs, hidden)(x).numpy()
  centers = np.stack([feature[y == c].mean(axis=0) for c in (0, 1)])
  distances = np.sum((feature[:, None] - centers) ** 2, axis=-1)
  np.testing.assert_allclose(found, exporting.softmax(-distances), atol=1e-5)
  # Its own softmax is not applied twice.
  plain = export.personalized_keras_model(
    keras_model, model, personalizations.NoPersonalization(), (x, y)
  )
  np.testing.assert_allclose(plain(x), keras_model(x), atol=1e-6)


def test_does_not_change_the_meta_model(tmp_path):
  keras_model, model, data = exporting.problem()
  before = keras_model.get_weights()
  personalized = export.personalized_keras_model(
    keras_model, model, exporting.MAML, data
  )
  for one, other in zip(before, keras_model.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)
  assert np.abs(personalized.get_weights()[0] - before[0]).max() > 0


def test_a_functional_model_of_tff():
  keras_model, model, data = exporting.problem()
  found, expected = (
    export.personalized_keras_model(keras_model, m, exporting.MAML, data)
    for m in (exporting.functional_model(), model)
  )
  for one, other in zip(
    found.get_weights(), expected.get_weights(), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_no_model_is_refused():
  keras_model, _, data = exporting.problem()
  with pytest.raises(TypeError, match='model must be .*from_keras'):
    export.personalized_keras_model(
      keras_model, keras_model, exporting.MAML, data
    )
