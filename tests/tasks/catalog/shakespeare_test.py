import pytest
import tensorflow as tf
import tff_files

from tasks.catalog import networks
from tasks.catalog import shakespeare
from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib
import tff_debias

_TEXTS = {
  'train': {
    'HAMLET': [b'To be, or not to be: ' * 5, b'that', b'', b'caf\xc3\xa9\n'],
    'OPHELIA': [b'Good my lord.', b'How does your honour?'],
  },
  'test': {'HAMLET': [b'Well, well, well.'], 'OPHELIA': [b'My lord?']},
}


@pytest.fixture
def folder(tmp_path):
  splits = {
    split: {
      role: [{'snippets': text} for text in texts]
      for role, texts in roles.items()
    }
    for split, roles in _TEXTS.items()
  }
  tff_files.write(tmp_path / 'shakespeare.sqlite', splits)
  return str(tmp_path)


def test_every_character_is_told_from_the_80_before(folder):
  loaded = shakespeare.load(folder, 'shakespeare')
  for data, roles in zip(loaded.natural, _TEXTS.values(), strict=True):
    assert data.client_ids == list(roles)
    for role, texts in roles.items():
      expected = []
      for text in texts:
        codes = [min(code, 127) for code in text]
        for i, code in enumerate(codes):
          expected.append(((80 * [0] + codes)[i : i + 80], code))
      dataset = data.create_tf_dataset_for_client(role)
      found = [
        (example['x'].tolist(), example['y'])
        for example in dataset.as_numpy_iterator()
      ]
      assert found == expected
      assert dataset.element_spec['x'] == tf.TensorSpec([80], tf.int32)
      assert dataset.element_spec['y'] == tf.TensorSpec([], tf.int32)


def test_defaults_complete_the_settings():
  settings = settings_lib.resolve(task='shakespeare', personalization='maml')
  assert settings.partition == 'natural'
  # As TFF's documentation says of its data.
  assert settings.num_clients == 715
  unset = {k for k, v in vars(settings).items() if v is None}
  assert unset == {
    *('data_dir', 'network', 'classes_per_client', 'concentration', 'mu'),
    'tested_personalization',
  }


@pytest.mark.slow
def test_trains_and_tests_through_the_runtime(
  folder, runtime, tmp_path, monkeypatch
):
  def small(length, num_characters, num_outputs):
    layers = tf.keras.layers
    return tf.keras.Sequential(
      [
        layers.Input([length], dtype=tf.int32),
        layers.Embedding(num_characters, 3),
        layers.LSTM(4),
        layers.Dense(num_outputs),
      ]
    )

  monkeypatch.setattr(networks, 'character_lstm', small)
  experiment = experiment_lib.Experiment(
    settings_lib.resolve(
      task='shakespeare',
      method='fed_avg',
      data_dir=folder,
      num_clients=2,
      clients_per_round=2,
      local_steps=1,
    )
  )
  process = experiment.build_process(
    tff_debias.ClientStorage(str(tmp_path / 'devices'))
  )
  state, metrics = process.next(
    process.initialize(), experiment.training_data(1)
  )
  assert metrics['client_work']['participants'] == 2
  tested = experiment.build_evaluation()(
    experiment.evaluated_weights(process, state), experiment.evaluation_data
  )
  assert tested['clients'] == 2
  num_characters = sum(
    len(text) for texts in _TEXTS['test'].values() for text in texts
  )
  assert 0 < tested['num_examples'] <= num_characters


def test_the_network_is_leafs():
  keras_model = networks.character_lstm(80, 128, 128)
  assert [tuple(w.shape) for w in keras_model.get_weights()] == [
    *((128, 8), (8, 1024), (256, 1024), (1024,)),
    *((256, 1024), (256, 1024), (1024,), (256, 128), (128,)),
  ]
