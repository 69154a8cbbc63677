import math

import exporting
import numpy as np
import pytest
import small_models
import tensorflow as tf

from tff_debias import export
from tff_debias import models
from tff_debias import personalizations
from tff_debias.export import cases
from tff_debias.personalizations import base


class Own(base.Personalization):
  meta_loss = personalize = evaluate = None


class Cautious(personalizations.Maml):
  """exporting.MAML that goes back half of the way."""

  def personalize(self, model, weights, dataset, max_grad_norm):
    adapted = super().personalize(model, weights, dataset, max_grad_norm)
    return tf.nest.map_structure(lambda w, v: (w + v) / 2, weights, adapted)


@pytest.fixture
def registered(monkeypatch):
  monkeypatch.setattr(cases, '_CASES', {**cases._CASES})


@pytest.mark.parametrize('personalization', [Own(), Cautious(3, 0.5)])
def test_a_personalization_without_a_case_is_refused(personalization):
  keras_model, model, data = exporting.problem()
  name = type(personalization).__name__
  with pytest.raises(
    export.ExportError,
    match=f'{name} cannot be exported: there is no export case for it, only for'
    ' exactly Maml, NoPersonalization, Proto.'
    rf' Give it one with tff_debias.export.register\({name}, ...\)',
  ):
    export.personalized_keras_model(keras_model, model, personalization, data)


def test_a_personalization_of_ones_own_is_exported(tmp_path, registered):
  class CautiousCase(export.Case):
    def outputs(self, personalized, inputs):
      variables = self.network.trainable_variables
      for variable, value in zip(
        variables, personalized.trainable, strict=True
      ):
        variable.assign(value)
      return self.network(inputs), True

  export.register(Cautious, CautiousCase)
  keras_model, (x, _), exported = exporting.run_export(
    tmp_path, Cautious(3, 0.5)
  )
  maml = tf.keras.models.load_model(
    exporting.run_export(tmp_path, exporting.MAML)[-1].keras
  )
  own = tf.keras.models.clone_model(keras_model)
  own.set_weights(
    [
      (one + other) / 2
      for one, other in zip(
        keras_model.get_weights(), maml.get_weights(), strict=True
      )
    ]
  )
  np.testing.assert_allclose(
    exported.keras_model(x), exporting.softmax(own(x).numpy()), atol=1e-5
  )
  assert 'on_device' not in exported.difference


def test_registers_classes_only():
  for arguments in (
    (exporting.MAML, export.Case),
    (Own, exporting.MAML),
    (Own, Own),
  ):
    with pytest.raises(TypeError, match='must be a class'):
      export.register(*arguments)


def test_a_class_without_an_example_is_never_predicted(tmp_path):
  _, (x, _), exported = exporting.run_export(tmp_path, exporting.PROTO)
  for batch in (x, x.astype(np.float32) * 1e6):
    found = exported.keras_model.predict(batch, verbose=0)
    assert np.isfinite(found).all()
    assert (found[:, 3] == 0).all()


def test_a_nested_model_is_refused_for_prototypes_only():
  tf.keras.utils.set_random_seed(0)
  inputs = tf.keras.layers.Input((2, 3))
  keras_model = tf.keras.Model(
    inputs, tf.keras.Sequential(exporting.mlp())(inputs)
  )
  _, _, (x, y) = exporting.problem()
  spec = (tf.TensorSpec([None, 2, 3]), tf.TensorSpec([None], tf.int32))
  model = models.from_keras(keras_model, small_models.CLASSIFIER_LOSS, spec)
  with pytest.raises(export.ExportError, match='nested'):
    export.personalized_keras_model(keras_model, model, exporting.PROTO, (x, y))
  assert export.personalized_keras_model(
    keras_model, model, exporting.MAML, (x, y)
  )


def test_a_personalization_of_ones_own_has_its_own_bound(registered):
  export.register(small_models.FreeMaml, cases._GradientDescent)
  keras_model, model, (x, y) = exporting.problem()
  # A large last layer, which gives the first one gradients far above 10.
  *first, kernel, bias = keras_model.get_weights()
  keras_model.set_weights([*first, 200 * kernel, bias])
  free, clipped = small_models.FreeMaml(1, 0.01), personalizations.Maml(1, 0.01)
  found, same, other = (
    export.personalized_keras_model(
      keras_model, model, personalization, (x, y), **options
    ).get_weights()
    for personalization, options in (
      (free, {}),
      (clipped, {'max_grad_norm': math.inf}),
      (clipped, {}),
    )
  )
  small_models.assert_same(found, same)
  assert any(
    np.abs(one - two).max() > 0.01
    for one, two in zip(found, other, strict=True)
  )
