import os
import subprocess
import sys

import exporting
import numpy as np
import pytest
import small_models
import tensorflow as tf

from tff_debias import export
from tff_debias import personalizations
from tff_debias.export import tflite


@pytest.mark.parametrize('layers', [exporting.mlp, exporting.cnn])
@pytest.mark.parametrize(
  'personalization',
  [exporting.MAML, exporting.PROTO, personalizations.NoPersonalization()],
)
def test_all_files_classify_raw_input_as_the_method_does(
  tmp_path, personalization, layers
):
  keras_model, (x, y), exported = exporting.run_export(
    tmp_path, personalization, layers
  )
  right = exporting.expected(keras_model, personalization, x, y)
  keras = tf.keras.models.load_model(exported.keras)
  serve = tf.saved_model.load(exported.saved_model).signatures
  assert list(serve) == ['serving_default']
  infer = exporting.signatures(exported.tflite)['infer']
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


def test_the_keras_file_needs_nothing_of_this_package(tmp_path):
  _, (x, _), exported = exporting.run_export(tmp_path, exporting.PROTO)
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


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path):
  folder = tmp_path / 'model'
  exporting.run_export(tmp_path, exporting.MAML)
  first = (folder / 'model.tflite').read_bytes()
  exporting.run_export(tmp_path, exporting.PROTO)
  assert (folder / 'model.tflite').read_bytes() != first
  assert os.listdir(tmp_path) == ['model']
  (folder / 'thesis.txt').write_text('mine')
  before = small_models.snapshot(tmp_path)
  with pytest.raises(export.ExportError, match='something else.*thesis.txt'):
    exporting.run_export(tmp_path, exporting.MAML)
  assert small_models.snapshot(tmp_path) == before


def test_a_failed_export_leaves_the_earlier_one(tmp_path, monkeypatch):
  exporting.run_export(tmp_path, exporting.MAML)
  before = small_models.snapshot(tmp_path)

  def full_disk(*args, **options):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(tflite, '_convert', full_disk)
  with pytest.raises(OSError, match='No space'):
    exporting.run_export(tmp_path, exporting.PROTO)
  assert small_models.snapshot(tmp_path) == before


def test_a_functional_model_is_written(tmp_path):
  keras_model, _, (x, y) = exporting.problem()
  exported = export.export_personalized_model(
    keras_model,
    exporting.functional_model(),
    exporting.MAML,
    (x, y),
    tmp_path / 'model',
    max_grad_norm=0.3,
  )
  np.testing.assert_allclose(
    exported.keras_model(x),
    exporting.expected(keras_model, exporting.MAML, x, y),
    atol=2e-5,
  )


def test_what_is_no_model_is_refused(tmp_path):
  keras_model, _, data = exporting.problem()
  with pytest.raises(TypeError, match='model must be .*from_keras'):
    export.export_personalized_model(
      keras_model, keras_model, exporting.MAML, data, tmp_path / 'model'
    )
