import numpy as np

from tasks.catalog import mini_imagenet
from tasks.runs import experiment as experiment_lib
from tasks.runs import settings as settings_lib


def test_is_the_published_experiment(tmp_path):
  # An example of each class for each of its 20 devices.
  y = np.arange(2000) % 100
  x = np.random.default_rng(0).integers(0, 256, (2000, 84, 84, 3), np.uint8)
  np.savez(
    tmp_path / 'mini_imagenet.npz', x_train=x, y_train=y, x_test=x, y_test=y
  )
  experiment = experiment_lib.Experiment(
    settings_lib.Settings(
      task='mini_imagenet',
      partition='alid',
      data_dir=str(tmp_path),
      batch_size=4,
      local_steps=3,
    )
  )
  assert experiment.settings.classes_per_client == 20
  # The last layer has an output for each class of a client, not 100.
  num_weights = experiment.build_keras_model().count_params()
  assert num_weights == 1_514_792 - 80 * 101
  batch = next(iter(experiment.training_data(1)[0]['data']))['x']
  assert batch.shape == (4, 84, 84, 3) and batch.dtype == np.uint8


def test_images_are_cropped_and_mirrored_and_then_change_their_color():
  x = np.full((3, 84, 84, 3), [90, 130, 200], np.uint8)
  result = mini_imagenet.augment(x, [1, 2]).numpy()
  assert not np.array_equal(result, mini_imagenet.augment(x, [1, 3]))
  for image in result:
    # Black from the padding; contrast may lift it to gray.
    colors = np.unique(image.reshape(-1, 3), axis=0)
    assert len(colors) == 2
    is_padding = (image == colors[0]).all(axis=-1)
    for axis in (0, 1):
      assert 0 <= is_padding.all(axis=1 - axis).sum() <= 8
