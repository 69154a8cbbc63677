import exporting
import numpy as np
import pytest
import small_models
import tensorflow as tf

from tff_debias import export


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
  keras_model, model, data = exporting.problem()
  with pytest.raises(export.ExportError, match=message):
    export.personalized_keras_model(
      keras_model, model, exporting.MAML, change(*data)
    )


def test_what_cannot_be_exported_is_refused(tmp_path):
  keras_model, model, data = exporting.problem()

  other = tf.keras.Sequential(
    [tf.keras.layers.Input((2, 3)), *exporting.cnn()[4:]]
  )
  with pytest.raises(export.ExportError, match='that the Model was made of'):
    export.personalized_keras_model(other, model, exporting.MAML, data)
  regression = small_models.linear_model()
  with pytest.raises(export.ExportError, match='Only a classifier'):
    export.personalized_keras_model(
      keras_model, regression, exporting.MAML, data
    )
  (tmp_path / 'file').write_text('')
  with pytest.raises(export.ExportError, match='no directory'):
    export.export_personalized_model(
      keras_model, model, exporting.MAML, data, tmp_path / 'file'
    )
  keras_model.set_weights([w + np.nan for w in keras_model.get_weights()])
  with pytest.raises(export.ExportError, match='not finite'):
    export.personalized_keras_model(keras_model, model, exporting.MAML, data)
