"""Small models and their exports, for the tests of the export."""

import numpy as np
import small_models
import tensorflow as tf
import tensorflow_federated as tff

from tff_debias import export
from tff_debias import models
from tff_debias import personalizations

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
  layers=mlp, loss=small_models.CLASSIFIER_LOSS, labels=3, num_examples=9
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
    loss_fn=lambda output, label, sample_weight=None: (
      small_models.CLASSIFIER_LOSS(label, output)
    ),
    input_spec=model.input_spec,
  )


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
      small_models.CLASSIFIER_LOSS,
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
