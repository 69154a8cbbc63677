"""Writes a client's personalized model: `python -m tasks.personalize --help`.

The meta-model comes from the folder of a run that `tasks.train` has finished.
It should be your own, or of somebody whose programs you would run.
"""

import os
from typing import Any
import zipfile

from absl import flags

from tasks import cli
from tasks.runs import errors
from tasks.runs import folder as folder_lib

_RUN = flags.DEFINE_string(
  'run', None, 'The folder of the run, such as runs/NAME.'
)
_CLIENT = flags.DEFINE_string(
  'client',
  None,
  'The client of the run whose training examples personalize the model, such'
  ' as client_0007.',
)
_EXAMPLES = flags.DEFINE_string(
  'examples',
  None,
  'In the place of --client: a file .npz with the examples of a new client, the'
  ' arrays x (raw input, as in the data set) and y (the classes, integers).',
)
_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir',
  None,
  'The folder for the model. By default personalized/CLIENT in the folder of'
  ' the run (without --client, the name of the file of examples).',
)


def main() -> None:
  """Personalizes the model, writes the files and lists them."""
  folder = _find_run()
  examples = _read_examples(_EXAMPLES.value) if _EXAMPLES.value else None

  import numpy as np

  from tasks.runs import checkpoint
  from tasks.runs import experiment as experiment_lib
  import tff_debias

  experiment = experiment_lib.Experiment(folder.read()[0])
  test = None
  if examples is None:
    client_id = _CLIENT.value
    client_ids = experiment.train_data.client_ids
    if client_id not in client_ids:
      raise errors.UserError(
        f'There is no --client={client_id} in the run, whose clients are'
        f' {client_ids[0]} to {client_ids[-1]}.'
        + errors.did_you_mean(client_id, client_ids)
      )
    examples, test = (
      [
        np.concatenate([b[name] for b in data.as_numpy_iterator()])
        for name in 'xy'
      ]
      for data in experiment.client_data(client_id).values()
    )
  else:
    client_id = os.path.splitext(os.path.basename(_EXAMPLES.value))[0]
  keras_model = experiment.build_keras_model()
  checkpoint.load_final(experiment, folder).assign_weights_to(keras_model)
  exported = tff_debias.export_personalized_model(
    keras_model,
    experiment.model,
    experiment.personalization_in_tests,
    examples,
    _OUTPUT_DIR.value or os.path.join(folder.path, 'personalized', client_id),
    max_grad_norm=experiment.max_grad_norm_in_tests,
  )
  print(experiment.settings.title)
  print(
    f'{client_id}: personalized with {len(examples[1])} examples of the classes'
    f' {", ".join(map(str, np.unique(examples[1])))}'
  )
  if test is not None:
    x, y = test
    before = keras_model.predict(x, verbose=0)
    after = exported.keras_model.predict(x, verbose=0)
    before, after = (np.mean(p.argmax(axis=1) == y) for p in (before, after))
    is_proto = isinstance(experiment.personalization, tff_debias.Proto)
    remark = ' (whose last layer is not trained)' * is_proto
    print(
      f'accuracy on its {len(y)} test examples: {before:.4f} by the meta-model'
      f'{remark}, {after:.4f} personalized'
    )
  for path in (exported.keras, exported.saved_model, exported.tflite):
    difference = exported.difference[os.path.basename(path)]
    print(f'{path}: probabilities right to within {difference:.1e}')
  if 'on_device' in exported.difference:
    print(
      'personalized by TensorFlow Lite itself:'
      f' {exported.difference["on_device"]:.1e}'
    )


def _check_flags() -> None:
  folder_lib.check_output_dir(_OUTPUT_DIR.value)
  if not _RUN.value:
    raise errors.UserError('--run=runs/NAME must name the run.')
  if bool(_CLIENT.value) == bool(_EXAMPLES.value):
    raise errors.UserError(
      'Give either --client, a client of the run, or --examples, a file with'
      ' the examples of a new one.'
    )
  _find_run()
  if _EXAMPLES.value:
    _read_examples(_EXAMPLES.value)


def _find_run() -> folder_lib.RunFolder:
  """The run. Raises an error if it has no meta-model."""
  folder = folder_lib.find(_RUN.value)
  if not os.path.exists(folder.meta_model):
    raise errors.UserError(
      f'The run {folder.path} has no meta_model.keras yet: it is written when'
      ' the training has finished.'
    )
  return folder


def _read_examples(path: str) -> tuple[Any, Any]:
  import numpy as np

  try:
    content = np.load(path)
    is_npz = isinstance(content, np.lib.npyio.NpzFile)
    arrays = dict(content) if is_npz else {}
  except FileNotFoundError as e:
    raise errors.UserError(f'There is no file --examples={path}.') from e
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
    raise errors.UserError(
      f'{path} cannot be read as an .npz of numbers, it may be truncated: {e}'
    ) from e
  if not is_npz:
    raise errors.UserError(f'{path} is no .npz, but a single array.')
  if set(arrays) != {'x', 'y'}:
    raise errors.UserError(
      f'{path} must hold the arrays x and y, got {", ".join(arrays) or "none"}.'
    )
  return arrays['x'], arrays['y']


if __name__ == '__main__':
  cli.run(main, _check_flags, 'The same command begins anew.')
