import types

import exporting
import numpy as np
import pytest
import small_models
import tensorflow as tf

from tff_debias import export


@pytest.mark.parametrize('layers', [exporting.mlp, exporting.cnn])
def test_tensorflow_lite_personalizes_on_the_device(tmp_path, layers):
  keras_model, (x, y), exported = exporting.run_export(
    tmp_path, exporting.MAML, layers
  )
  device = exporting.signatures(exported.tflite)
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

  loss = small_models.CLASSIFIER_LOSS
  own = tf.keras.models.clone_model(keras_model)
  own.set_weights(keras_model.get_weights())
  personalized = infer()
  meta = exporting.softmax(keras_model(x).numpy())
  assert np.abs(meta - personalized).max() > 0.01
  personalize(range(3), x, y)
  np.testing.assert_allclose(infer(), personalized, atol=1e-5)
  np.testing.assert_allclose(
    infer(), exporting.softmax(own(x).numpy()), atol=1e-5
  )

  # Another number of examples; then what was saved comes back.
  path = np.array(str(tmp_path / 'weights'), bytes)
  device['save'](path=path)
  personalize([3], x[:4], y[:4])
  assert np.abs(infer() - personalized).max() > 1e-3
  again = exporting.signatures(exported.tflite)
  again['personalize'](x=x, y=y, step=np.array(0, np.int32))
  assert (
    np.abs(again['infer'](x=x)['probabilities'] - personalized).max() > 1e-3
  )
  again['restore'](path=path)
  np.testing.assert_allclose(
    again['infer'](x=x)['probabilities'], personalized, atol=1e-5
  )


def test_an_error_without_a_message_is_named_by_its_class(
  tmp_path, monkeypatch
):
  def convert():
    raise RuntimeError

  monkeypatch.setattr(
    tf.lite.TFLiteConverter,
    'from_saved_model',
    lambda folder: types.SimpleNamespace(convert=convert),
  )
  with pytest.raises(export.ExportError, match='convert the model: RuntimeErr'):
    exporting.run_export(tmp_path, exporting.PROTO)
