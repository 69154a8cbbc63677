"""Draws the accuracy on digits against ε, of PFLDyn and Per-FedAvg.

    uv run python -m colab.dp_figure

trains 30 times.
"""

import collections
import tempfile

import matplotlib.figure
import numpy as np
from sklearn import datasets
import tensorflow as tf

from tasks.reports import figures
from tasks.runs import methods
import tff_debias
from tff_debias import partitions

NUM_CLIENTS, CLIENTS_PER_ROUND, NUM_ROUNDS = 100, 25, 30
CLIP_NORM, DELTA = 0.5, 1e-3


def accuracy_against_epsilon(
  noise_multipliers: tuple[float, ...] = (0.3, 1.0, 3.0),
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
) -> dict[str, list[tuple[float, float]]]:
  """Trains with prototypes, under several strengths of noise.

  Each client takes part in a round by a draw of its own (Poisson sampling).

  Args:
    noise_multipliers: The noise over the clipping norm; one run for each.
    seeds: One run for each: the split of the data, the draws and the weights.

  Returns:
    For each method: ε and the accuracy of each run. `untrained` is the model
    before the first round.
  """
  results = collections.defaultdict(list)
  for noise in noise_multipliers:
    for seed in seeds:
      for name, correction in (
        ('Per-FedAvg', tff_debias.NoCorrection()),
        ('PFLDyn', tff_debias.Dyn(alpha=0.1)),
      ):
        epsilon, before, after = _train(correction, noise, seed)
        results[name].append((epsilon, after))
        print(
          f'{name}: z {noise}, ε {epsilon:.2f}, accuracy {after:.3f}, untrained'
          f' {before:.3f}'
        )
      results['untrained'].append((epsilon, before))
  return dict(results)


def draw(results: dict[str, list[tuple[float, float]]], path: str) -> None:
  """Draws the mean and the range over seeds.

  Args:
    results: What `accuracy_against_epsilon` returned.
    path: The file.
  """
  num_seeds = len(results['PFLDyn']) // len({e for e, _ in results['PFLDyn']})
  figure = matplotlib.figure.Figure((7, 4.2), layout='constrained')
  axes = figure.add_subplot()
  for method, line in figures.lines_of(()).items():
    name = methods.title(method)
    by_epsilon = collections.defaultdict(list)
    for epsilon, accuracy in results.get(name, ()):
      by_epsilon[epsilon].append(accuracy)
    if by_epsilon:
      epsilons = sorted(by_epsilon)
      values = np.array([by_epsilon[epsilon] for epsilon in epsilons])
      mean = values.mean(axis=1)
      spread = np.abs([values.min(axis=1) - mean, values.max(axis=1) - mean])
      axes.errorbar(epsilons, mean, spread, capsize=3, label=name, **line)
  untrained = np.mean([accuracy for _, accuracy in results['untrained']])
  axes.axhline(untrained, color='0.3', linestyle=':', label='untrained, mean')
  axes.set_xscale('log')
  axes.set_xlabel(
    f'ε at δ = {DELTA:g}, after {NUM_ROUNDS} rounds (add or remove a client)'
  )
  axes.set_ylabel('personalized accuracy')
  axes.grid(alpha=0.3)
  axes.set_title(f'Digits, prototypes: mean and range of {num_seeds} seeds')
  figure.legend(loc='outside lower center', ncols=3)
  figure.savefig(path, dpi=100)


def _train(
  correction: tff_debias.Correction, noise: float, seed: int
) -> tuple[float, float, float]:
  """ε, and the accuracy before and after a run."""
  digits = datasets.load_digits()
  order = np.random.default_rng(seed).permutation(len(digits.target))
  x = (digits.images[order] / 16).astype(np.float32)
  y = digits.target[order].astype(np.int32)
  train, test = partitions.acid(
    (x[:1200], y[:1200]), (x[1200:], y[1200:]), NUM_CLIENTS, 3, seed
  )
  tf.keras.utils.set_random_seed(seed)
  network = tf.keras.Sequential(
    [
      tf.keras.layers.Input((8, 8)),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(16, 'relu'),
      tf.keras.layers.Dense(10),
    ]
  )
  model = tff_debias.from_keras(
    network,
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    collections.OrderedDict(
      x=tf.TensorSpec([None, 8, 8]), y=tf.TensorSpec([None], tf.int32)
    ),
    lambda: [tf.keras.metrics.SparseCategoricalAccuracy('accuracy')],
  )
  personalization = tff_debias.Proto()

  # A device has 12 examples: a batch.
  train, test = (
    data.preprocess(lambda d: d.batch(12)) for data in (train, test)
  )
  aggregator = tff_debias.dp_aggregator(noise, CLIENTS_PER_ROUND, CLIP_NORM)
  rng = np.random.default_rng([seed, 1])
  sampling_rate = CLIENTS_PER_ROUND / NUM_CLIENTS
  with tempfile.TemporaryDirectory() as folder:
    process = tff_debias.build_learning_process(
      model,
      personalization,
      correction,
      learning_rate=0.1,
      num_clients=NUM_CLIENTS,
      storage=tff_debias.ClientStorage(folder),
      model_aggregator=aggregator,
    )
    # Ten local steps, of a support and a query batch each.
    process = tff_debias.compose_with_client_data(
      process, train.preprocess(lambda data: data.repeat(20))
    )
    state = process.initialize()
    for _ in range(NUM_ROUNDS):
      participants = [
        client_id
        for client_id in train.client_ids
        if rng.random() < sampling_rate
      ]
      state, _ = process.next(state, participants)
  evaluate = tff_debias.compose_evaluation_with_client_data(
    tff_debias.build_personalized_evaluation(model, personalization),
    train,
    test,
  )
  before, after = (
    float(evaluate(weights, train.client_ids)['by_client']['accuracy']['mean'])
    for weights in (model.initial_weights, process.get_model_weights(state))
  )
  epsilon, _ = tff_debias.privacy_spent(
    aggregator,
    NUM_ROUNDS,
    num_clients=NUM_CLIENTS,
    delta=DELTA,
    sampling='poisson',
  )
  return epsilon, before, after


if __name__ == '__main__':
  with tff_debias.runtime.local_context():
    draw(
      accuracy_against_epsilon(), 'colab/results/accuracy_against_epsilon.png'
    )
