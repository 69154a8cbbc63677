import os

import exporting
import pytest
import tensorflow as tf

from tff_debias import export


def test_files_that_do_not_agree_are_an_error(tmp_path):
  keras_model, model, data = exporting.problem()
  wrong = tf.keras.Sequential(exporting.mlp()[:-2])
  wrong.add(tf.keras.layers.Dense(5, 'relu'))
  wrong.add(tf.keras.layers.Dense(4))
  wrong.set_weights(keras_model.get_weights())
  with pytest.raises(export.ExportError, match='model.keras gives other'):
    export.export_personalized_model(
      wrong, model, exporting.MAML, data, tmp_path / 'model'
    )
  assert not os.listdir(tmp_path)
