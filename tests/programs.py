"""TFF's program `train_model`, as tests run it."""

import asyncio

import tensorflow_federated as tff

from tff_debias import runtime


def data_source(rounds, federated_type):
  """A data source of the given participants of each round."""

  class Iterator(tff.program.FederatedDataSourceIterator):
    def __init__(self, num_selected=0):
      self._num_selected = num_selected

    @property
    def federated_type(self):
      return federated_type

    def select(self, k=None):
      self._num_selected += 1
      return rounds[self._num_selected - 1]

    def to_bytes(self):
      return str(self._num_selected).encode()

    @classmethod
    def from_bytes(cls, buffer):
      return cls(int(buffer))

  class Source(tff.program.FederatedDataSource):
    @property
    def federated_type(self):
      return federated_type

    def iterator(self):
      return Iterator()

  return Source()


def program_context():
  """Runs programs in the tests' context, which keeps what it compiled."""
  local = tff.framework.get_context_stack().current
  is_ours = isinstance(local, runtime.LocalContext)
  return runtime.ProgramContext(local if is_ours else None)


def train_model(process, source, manager, num_rounds, context=None, **options):
  """Trains with two participants a round; returns the last state."""
  released = tff.program.MemoryReleaseManager()
  program = tff.learning.programs.train_model(
    train_process=process,
    train_data_source=source,
    train_per_round_clients=2,
    train_total_rounds=num_rounds,
    program_state_manager=manager,
    model_output_manager=released,
    evaluation_manager=None,
    evaluation_periodicity=1,
    **options,
  )
  context = context or program_context()
  with (
    tff.framework.get_context_stack().install(context),
    asyncio.Runner() as runner,
  ):
    runner.run(program)
  return released.values()[f'training_checkpoint_round_{num_rounds}']
