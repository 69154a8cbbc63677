"""Rounds of Apple's pfl (PyTorch), in an environment of its own.

    python pfl_process.py METHOD DEVICES EXAMPLES BATCH EPOCHS ROUNDS

METHOD is fed_avg or scaffold. For each line on its standard input it runs a
round and prints the seconds. It imports nothing of this project: neither is in
the other's environment.
"""

import itertools
import os
import sys
import time

import numpy as np
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import base
from pfl.algorithm import federated_averaging
from pfl.algorithm import scaffold
from pfl.callback import base as callback_base
from pfl.data import dataset
from pfl.data import federated_dataset
from pfl.data import user_state
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
import torch
from torch import nn


class Cnn(nn.Sequential):
  """`tasks.catalog.networks.cnn`, with the methods that pfl asks for."""

  def __init__(self):
    super().__init__(
      *(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
      *(nn.Conv2d(64, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
      *(nn.Flatten(), nn.Linear(1600, 384), nn.ReLU()),
      *(nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, 10)),
    )

  def loss(self, x, y):
    """The mean cross-entropy."""
    return nn.functional.cross_entropy(self(x), y)

  def metrics(self, x, y):
    """None."""
    return {}


class Gate(callback_base.TrainingProcessCallback):
  """Holds pfl between two rounds, and times them."""

  def __init__(self):
    # pfl prints too: that goes to standard error.
    self._answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

  def on_train_begin(self, *, model):
    """Waits for the first line."""
    self._wait()
    return Metrics()

  def after_central_iteration(
    self, aggregate_metrics, model, *, central_iteration
  ):
    """Prints the time of the round and waits for a line."""
    print(time.perf_counter() - self._start, file=self._answers, flush=True)
    self._wait()
    return False, Metrics()

  def _wait(self):
    if not sys.stdin.readline():
      sys.exit()
    self._start = time.perf_counter()


def main() -> None:
  """Runs rounds for as long as lines come."""
  method = sys.argv[1]
  devices, examples, batch, epochs, rounds = map(int, sys.argv[2:])
  rng = np.random.default_rng(0)

  def make_dataset(user_id: int) -> dataset.Dataset:
    return data[user_id]

  data = [
    dataset.Dataset(
      raw_data=[
        torch.tensor(rng.random((examples, 3, 32, 32), np.float32)),
        torch.tensor(rng.integers(0, 10, examples)),
      ],
      user_id=str(i),
    )
    for i in range(devices)
  ]
  turn = itertools.cycle(range(devices))
  users = federated_dataset.FederatedDataset(make_dataset, turn.__next__)
  network = Cnn()
  assert sum(p.numel() for p in network.parameters()) == 797_962
  options = {
    'central_num_iterations': rounds,
    'evaluation_frequency': rounds + 1,
    'train_cohort_size': devices,
    'val_cohort_size': 0,
  }
  if method == 'fed_avg':
    algorithm = federated_averaging.FederatedAveraging()
    parameters = base.NNAlgorithmParams(**options)
  else:
    algorithm = scaffold.SCAFFOLD()
    parameters = scaffold.SCAFFOLDParams(
      **options,
      population=devices,
      use_gradient_as_control_variate=False,
      # Its storage on a disk fails with PyTorch 2.6 and later.
      user_state_storage=user_state.InMemoryUserStateStorage(),
    )
  algorithm.run(
    parameters,
    SimulatedBackend(users, users),
    PyTorchModel(
      network,
      lambda p, lr: torch.optim.SGD(p, lr=lr, weight_decay=1e-3),
      torch.optim.SGD(network.parameters(), lr=1.0),
    ),
    NNTrainHyperParams(
      local_num_epochs=epochs,
      local_learning_rate=0.1,
      local_batch_size=batch,
      local_max_grad_norm=10.0,
    ),
    callbacks=[Gate()],
  )


if __name__ == '__main__':
  main()
