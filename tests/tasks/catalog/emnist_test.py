import numpy as np
import pytest
import tff_files

from tasks.catalog import emnist
from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib


@pytest.mark.parametrize(
  'name, num_classes', [('emnist', 62), ('emnist_digits', 10)]
)
def test_a_device_is_a_writer(tmp_path, name, num_classes):
  splits = tff_files.writers(4, num_classes)
  other = tff_files.writers(2, 72 - num_classes)
  tff_files.write(tmp_path / 'emnist_all.sqlite', splits | other)
  loaded = emnist.load(str(tmp_path), name)
  assert loaded.num_classes == num_classes
  for data, writers in zip(loaded.natural, splits.values(), strict=True):
    assert data.client_ids == list(writers)
    for writer, expected in writers.items():
      dataset = data.create_tf_dataset_for_client(writer)
      for one, raw in zip(dataset.as_numpy_iterator(), expected, strict=True):
        assert one['x'].shape == (28, 28, 1) and one['x'].dtype == np.float32
        assert one['y'].shape == () and one['y'].dtype == np.int32
        np.testing.assert_array_equal(one['x'][..., 0], raw['pixels'])
        assert one['y'] == raw['label']
  settings = settings_lib.resolve(task=name, personalization='maml')
  assert settings.partition == 'natural'
  # As TFF's documentation says of its data.
  assert settings.num_clients == {62: 3400, 10: 3383}[num_classes]
  unset = {k for k, v in vars(settings).items() if v is None}
  assert unset == {
    *('data_dir', 'network', 'classes_per_client', 'concentration', 'mu'),
    'tested_personalization',
  }
  network = loaded.build_model(3)
  assert network.output_shape == (None, 3)
  # White paper is 1 in the data, and 0 for the network.
  scaled = network.get_layer('scaling')(np.float32([1.0, 0.25]))
  np.testing.assert_array_equal(scaled, [0.0, 0.75])


@pytest.mark.slow
def test_trains_and_tests_through_the_runtime(tmp_path, runtime):
  import tff_debias

  tff_files.write(
    tmp_path / 'emnist_all.sqlite', tff_files.writers(5, num_classes=10)
  )
  experiment = experiment_lib.Experiment(
    settings_lib.resolve(
      task='emnist_digits',
      data_dir=str(tmp_path),
      num_clients=4,
      clients_per_round=2,
      local_steps=2,
      batch_size=4,
    )
  )
  process = experiment.build_process(
    tff_debias.ClientStorage(str(tmp_path / 'devices'))
  )
  state = process.initialize()
  for round_num in (1, 2):
    state, metrics = process.next(state, experiment.training_data(round_num))
    assert metrics['client_work']['participants'] == 2
  tested = experiment.build_evaluation()(
    experiment.evaluated_weights(process, state), experiment.evaluation_data
  )
  assert tested['clients'] == 4
  # Without those of a class that the writer does not train on.
  assert 0 < tested['num_examples'] <= 4 * 4
