"""Evaluates a meta-model device by device: by data, by step, personalized."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tasks.runs import errors
from tasks.runs import experiment as experiment_lib
import tff_debias

GROUPS = ('took part', 'not yet', 'held out')

Row = dict[str, Any]
# The values of all devices, float64 [clients] or [clients, steps]; NaN where a
# device was not evaluated or its result is not finite.
Results = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The results of all devices; a value that is missing or not finite is NaN.

  Attributes:
    title: What was evaluated.
    round_num: The round of the meta-model.
    trained_steps: The number of MAML steps in its tests; 0 without MAML.
    clients: A row for each device: its id `client`, its `group` (of `GROUPS`),
      its numbers of `train_examples` and `test_examples`, `meta_accuracy` and
      `meta_loss` (of the meta-model as it is), `accuracy` and `loss`
      (personalized), `gain` (of accuracy), and `alone` (the accuracy after
      local training from the initial model).
    few_shot: A row for each `group` and number of local `examples` (a number,
      or `all`): the number of `clients` that have as many, and `mean`, `q10`
      and `q90` of their accuracy; and `alone`, the mean accuracy of the same
      devices that train alone on the same examples.
    steps: A row for each `group` and number of MAML `steps`, likewise.
  """

  title: str
  round_num: int
  trained_steps: int
  clients: list[Row]
  few_shot: list[Row]
  steps: list[Row]


def evaluate(
  experiment: experiment_lib.Experiment,
  weights: Any,
  round_num: int,
  *,
  max_clients: int | None = None,
  few_shot: Sequence[int] | None = None,
  num_steps: int | None = None,
  local_steps: int = 0,
) -> Evaluation:
  """Evaluates a meta-model, that of the given round, device by device.

  At most `max_clients` devices are evaluated, chosen at random. `few_shot` are
  numbers of local examples, by default 1, 2, 5, 10, 20, 50, … The curve against
  MAML steps ends at `num_steps`, by default twice those of its tests.
  With `local_steps`, each device also trains alone for that number of steps.
  """
  personalization = experiment.personalization_in_tests
  # The steps of a class that is derived from it can be others.
  is_maml = type(personalization) is tff_debias.Maml
  if num_steps is not None and not is_maml:
    raise errors.UserError(
      f'--steps={num_steps} is for MAML, but the run is tested with'
      f' {experiment.settings.personalization_in_tests}.'
    )
  devices = _Devices(experiment, round_num, max_clients)
  test = experiment.build_client_evaluation(personalization)
  nothing = tff_debias.NoPersonalization()
  trained, steps = 0, []
  if is_maml:
    trained = personalization.num_steps
    last = num_steps or 2 * trained
    by_step = tff_debias.build_step_evaluation(
      experiment.model,
      personalization,
      max(last, trained),
      max_grad_norm=experiment.max_grad_norm_in_tests,
    )
    table = devices.run(weights, 'steps', by_step)
    meta, personalized = (
      {name: values[:, step] for name, values in table.items()}
      for step in (0, trained)
    )
    for step in range(last + 1):
      steps += devices.curve('steps', step, table['accuracy'][:, step])
  else:
    personalized = meta = devices.run(weights, 'personalized', test)
    # Prototypes replace the last layer, so it is not trained.
    if isinstance(experiment.personalization, tff_debias.Proto):
      meta = {name: values * np.nan for name, values in meta.items()}
    elif personalization != nothing:
      untouched = experiment.build_client_evaluation(nothing)
      meta = devices.run(weights, 'meta-model', untouched)

  no_values = np.full(len(devices.ids), np.nan)
  if local_steps:
    local_training = experiment.build_local_training(local_steps)

  def alone(size: int | None = None) -> np.ndarray:
    if not local_steps:
      return no_values
    initial = experiment.model.initial_weights
    return devices.run(initial, 'alone', local_training, size)['accuracy']

  all_alone = alone()
  shots: list[Row] = []
  if few_shot is None:
    numbers = [n * 10**k for k in range(9) for n in (1, 2, 5)]
    few_shot = [n for n in numbers if n < devices.train_examples.max()]
  if few_shot and personalization != nothing:
    shots = devices.curve('examples', 0, meta['accuracy'], no_values)
    for size in few_shot:
      found = devices.run(weights, f'{size} examples', test, size)['accuracy']
      shots += devices.curve('examples', size, found, alone(size))
    found = personalized['accuracy']
    shots += devices.curve('examples', 'all', found, all_alone)
  columns = {
    'client': devices.ids,
    'group': devices.groups,
    'train_examples': devices.train_examples,
    'test_examples': devices.test_examples,
    'meta_accuracy': meta['accuracy'],
    'meta_loss': meta['loss'],
    'accuracy': personalized['accuracy'],
    'loss': personalized['loss'],
    'gain': personalized['accuracy'] - meta['accuracy'],
    'alone': all_alone,
  }
  clients = [
    dict(zip(columns, values, strict=True))
    for values in zip(*columns.values(), strict=True)
  ]
  title = (
    f'{experiment.settings.title}; the model'
    f' {experiment.settings.evaluated_model!r} after round {round_num}'
  )
  return Evaluation(title, round_num, trained, clients, shots, steps)


class _Devices:
  """The devices that are evaluated: their groups, their data, their results."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    round_num: int,
    max_clients: int | None,
  ):
    self._experiment = experiment
    everyone = experiment.train_data.client_ids
    rng = experiment_lib.Stream.EVALUATED_CLIENTS.rng(experiment.settings.seed)
    self._places = np.sort(rng.permutation(len(everyone))[:max_clients])
    self.ids = [everyone[place] for place in self._places]
    held_out = set(experiment.held_out_clients)
    took_part = experiment.clients_until(round_num)
    places = [2 * (i in held_out) or int(i not in took_part) for i in self.ids]
    self.groups = np.array(GROUPS)[places]
    self.train_examples, self.test_examples = (
      np.array([_size(data.create_tf_dataset_for_client(i)) for i in self.ids])
      for data in (experiment.train_data, experiment.test_data)
    )

  def run(
    self,
    weights: Any,
    name: str,
    evaluation: tff.Computation,
    size: int | None = None,
  ) -> Results:
    """The results of the devices with at least `size` training examples."""
    places = np.flatnonzero(self.train_examples >= (size or 0))
    data = (self._data(i, size) for i in places)
    answers = experiment_lib.run_in_parts(
      evaluation, weights, data, len(places), name
    )
    results: Results = {}
    for i, answer in zip(places, answers, strict=True):
      for name, value in answer.items():
        if name not in results:
          results[name] = np.full([len(self.ids), *np.shape(value)], np.nan)
        results[name][i] = np.where(answer['is_included'], value, np.nan)
    return results

  def _data(self, client: int, size: int | None) -> Mapping[str, Any]:
    """A device's data, of its training examples the first of a fixed order."""
    data = self._experiment.client_data(self.ids[client])
    if size is not None:
      num_examples = self.train_examples[client]
      rng = experiment_lib.Stream.FEW_SHOT_EXAMPLES.rng(
        self._experiment.settings.seed, self._places[client]
      )
      order = rng.permutation(num_examples)[:size]
      examples = data['train'].unbatch().batch(num_examples)
      chosen = tf.nest.map_structure(
        lambda values: tf.gather(values, order), examples.get_single_element()
      )
      chosen = tf.data.Dataset.from_tensor_slices(chosen)
      data['train'] = chosen.batch(experiment_lib.EVALUATION_BATCH_SIZE)
    return data

  def curve(
    self,
    name: str,
    place: Any,
    accuracy: np.ndarray,
    alone: np.ndarray | None = None,
  ) -> list[Row]:
    """The rows of one place of a curve: over the devices with a value there."""
    rows = []
    for group in GROUPS:
      is_shown = (self.groups == group) & np.isfinite(accuracy)
      values = accuracy[is_shown]
      if len(values):
        row = {'group': group, name: place, 'clients': len(values)}
        low, high = quantile(values, (0.1, 0.9))
        row |= {'mean': values.mean(), 'q10': low, 'q90': high}
        if alone is not None:
          row['alone'] = alone[is_shown].mean()
        rows.append(row)
    return rows


def quantile(values: np.ndarray, shares: Any) -> Any:
  """The smallest value with that share at or below it, as in the metrics."""
  return np.quantile(values, shares, method='inverted_cdf')


def _size(dataset: tf.data.Dataset) -> int:
  return int(dataset.reduce(np.int64(0), lambda total, _: total + 1))
