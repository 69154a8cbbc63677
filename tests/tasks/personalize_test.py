import os

import numpy as np
import pytest
from sklearn import datasets
import tensorflow as tf

from tasks.runs import experiment as experiment_lib
from tasks.runs import folder as folder_lib
from tasks.runs import settings as settings_lib
from tests.tasks import small_runs
from tff_debias import evaluation


def make_run(path, **options):
  """The folder of a run, with a meta-model of its own."""
  experiment = experiment_lib.Experiment(
    settings_lib.Settings(num_clients=8, clients_per_round=3, **options)
  )
  folder = folder_lib.RunFolder(str(path))
  os.makedirs(path)
  folder.claim(experiment.settings)
  experiment.build_keras_model().save(folder.meta_model)
  return experiment


def personalize(*flags):
  return small_runs.run_program('personalize', *flags)


@pytest.mark.parametrize(
  ('personalization', 'partition'), [('maml', 'alid'), ('proto', 'acid')]
)
def test_a_device_of_the_run(tmp_path, runtime, personalization, partition):
  run = tmp_path / 'run'
  experiment = make_run(
    run, personalization=personalization, partition=partition
  )
  result = personalize(f'--run={run}', '--client=client_0003')
  assert result.returncode == 0, result.stderr
  assert not result.stderr
  folder = run / 'personalized' / 'client_0003'
  assert sorted(os.listdir(folder)) == [
    'model.keras',
    'model.tflite',
    'saved_model',
  ]
  # TFF's own test of the device, and the file on the raw images.
  data = experiment.client_data('client_0003')
  weights = experiment.model.initial_weights
  right = evaluation.build_client_evaluation(
    experiment.model, experiment.personalization
  )(weights, [data])[0]
  (batch,) = data['test'].as_numpy_iterator()
  model = tf.keras.models.load_model(folder / 'model.keras')
  found = model.predict(batch['x'], verbose=0).argmax(axis=1)
  accuracy = np.mean(found == batch['y'])
  np.testing.assert_allclose(accuracy, right['accuracy'], atol=1e-6)
  assert f'{accuracy:.4f} personalized' in result.stdout
  by_client = 'by TensorFlow Lite itself' in result.stdout
  assert by_client == (personalization == 'maml')


def test_the_examples_of_another_device(tmp_path):
  run, file = tmp_path / 'run', tmp_path / 'mine.npz'
  make_run(run)
  bunch = datasets.load_digits()
  chosen = np.flatnonzero(np.isin(bunch.target, (2, 5)))[:40]
  x, y = bunch.images[chosen], bunch.target[chosen]
  np.savez(file, x=x.astype(np.uint8), y=y)
  output = tmp_path / 'here'
  flags = (f'--run={run}', f'--examples={file}', f'--output_dir={output}')
  result = personalize(*flags)
  assert result.returncode == 0, result.stderr
  assert 'mine: personalized with 40 examples of the classes 2, 5' in (
    result.stdout
  )
  model = tf.keras.models.load_model(output / 'model.keras')
  found = model.predict(x, verbose=0).argmax(axis=1)
  assert set(found) == {2, 5} and np.mean(found == y) > 0.8


def npz(path, **arrays):
  np.savez(path, **arrays)
  return path


def test_wrong_flags_and_files_are_named(tmp_path):
  run = tmp_path / 'digits_run'
  make_run(run)
  good = npz(tmp_path / 'good.npz', x=np.zeros((2, 8, 8)), y=[0, 1])
  cut = tmp_path / 'cut.npz'
  cut.write_bytes(good.read_bytes()[:-200])
  keys = npz(tmp_path / 'keys.npz', images=np.zeros(3), y=[1])
  shape = npz(tmp_path / 'shape.npz', x=np.zeros((2, 64)), y=[0, 1])
  pickled = npz(tmp_path / 'pickled.npz', x=np.array([{}]), y=[0])
  here = f'--run={run}'
  cases = [
    ((), '--run=runs/NAME must name'),
    ((here,), 'either --client'),
    ((here, '--client=client_0001', f'--examples={good}'), 'either --client'),
    ((f'--run={tmp_path}/digit_run', '--client=a'), f'Did you mean {run}?'),
    ((f'--run={tmp_path}', '--client=a'), 'holds no run'),
    ((here, '--client=client_003'), 'Did you mean client_0003?'),
    ((here, f'--examples={tmp_path}/no.npz'), 'There is no file --examples='),
    ((here, f'--examples={cut}'), 'truncated'),
    ((here, f'--examples={run}/settings.json'), 'cannot be read as an .npz'),
    ((here, f'--examples={pickled}'), 'cannot be read as an .npz'),
    ((here, f'--examples={keys}'), 'arrays x and y, got images, y'),
    ((here, f'--examples={shape}'), '[examples, 8, 8], got [2, 64]'),
  ]
  before = sorted(os.listdir(run))
  for flags, message in cases:
    result = personalize(*flags)
    assert result.returncode == 2, flags
    assert message in result.stderr, (flags, result.stderr)
    assert 'Traceback' not in result.stderr
  assert sorted(os.listdir(run)) == before
  (run / 'meta_model.keras').unlink()
  result = personalize(here, '--client=client_0001')
  assert result.returncode == 2 and 'no meta_model.keras yet' in result.stderr
