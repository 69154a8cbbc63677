"""The sections of the benchmark: which cases are compared with each other.

The amount of work, `size`, is the flags of `tasks.benchmark`.
"""

from collections.abc import Sequence
import shlex

from absl import flags
import tensorflow as tf

from tasks.benchmarks import cases
from tasks.benchmarks import peers
from tasks.benchmarks import problem
from tasks.benchmarks import timing
import tff_debias

_NONE, _PROTO = tff_debias.NoPersonalization(), tff_debias.Proto()
_DYN = tff_debias.Dyn(0.1)
_CORRECTIONS = (tff_debias.NoCorrection(), _DYN, tff_debias.Scaf())
_NAMES = ('FedAvg', 'PFLDyn', 'PFLScaf')
_PLAIN_NAMES = ('FedAvg', 'FedDyn', 'SCAFFOLD')
_EXAMPLES = 500
_BARE = 'bare TensorFlow loop'
_TFF_IN_ITS_CONTEXT = "TFF FedAvg (VariableModel) in TFF's context"


def _maml(num_steps: int) -> tff_debias.Maml:
  return tff_debias.Maml(num_steps, learning_rate=0.01)


def _methods(
  subject: problem.Problem,
  personalization: tff_debias.Personalization,
  batches: Sequence[tf.data.Dataset],
  suffix: str = '',
) -> dict[str, timing.Case]:
  """Our three methods of a personalization, which the suffix names."""
  names = [f'{name} {suffix}' for name in _NAMES] if suffix else _PLAIN_NAMES
  return {
    name: cases.OurRounds(subject, personalization, correction, batches)
    for name, correction in zip(names, _CORRECTIONS, strict=True)
  }


def _tff(
  subject: problem.Problem, batches: Sequence[tf.data.Dataset]
) -> dict[str, timing.Case]:
  """TFF's own FedAvg."""
  rounds = peers.TffRounds
  return {
    'TFF FedAvg (VariableModel)': rounds(subject, 'VariableModel', batches),
    'TFF FedAvg (FunctionalModel)': rounds(subject, 'FunctionalModel', batches),
    _TFF_IN_ITS_CONTEXT: peers.TffRoundsInItsContext(
      subject, 'VariableModel', batches
    ),
  }


def plain(size: flags.FlagValues) -> timing.Section:
  """(a)–(d): the paper's network without personalization, and the peers."""
  paper = problem.PAPER
  batches = paper.batches(
    size.clients_per_round, size.batch_size, size.local_steps, _EXAMPLES
  )
  epochs, rest = divmod(size.local_steps * size.batch_size, _EXAMPLES)
  numbers = (size.clients_per_round, _EXAMPLES, size.batch_size, epochs)
  pfl = {
    f'pfl {name}': peers.PflRounds(
      shlex.split(size.pfl_python), (method, *numbers, size.repetitions + 1)
    )
    for name, method in (('FedAvg', 'fed_avg'), ('SCAFFOLD', 'scaffold'))
    # pfl counts epochs, so the number of steps must be one of whole epochs.
    if not rest
  }
  return timing.Section(
    'plain',
    f"The paper's network (797,962 weights), no personalization:"
    f' {size.clients_per_round} devices × {size.local_steps} steps ×'
    f' batch {size.batch_size}, a round',
    {
      **_methods(paper, _NONE, batches),
      _BARE: cases.BareRounds(paper, _NONE, batches),
      **_tff(paper, batches),
      'TFF MimeLite': peers.TffRounds(paper, 'MimeLite', batches),
      **pfl,
    },
    (
      *(_BARE, 'FedAvg', 'TFF FedAvg (VariableModel)', _TFF_IN_ITS_CONTEXT),
      'pfl FedAvg',
    ),
  )


def _personalized(
  size: flags.FlagValues,
  name: str,
  personalization: tff_debias.Personalization,
  steps: int,
  title: str,
) -> timing.Section:
  paper = problem.PAPER
  batches = paper.batches(
    size.clients_per_round, size.batch_size, 2 * steps, _EXAMPLES
  )
  return timing.Section(
    name,
    f"The paper's network, {title}: {size.clients_per_round} devices × {steps}"
    f' steps × batch {size.batch_size} (support and query), a round',
    {
      **_methods(paper, personalization, batches, name),
      _BARE: cases.BareRounds(paper, personalization, batches),
    },
    (_BARE, f'FedAvg {name}'),
  )


def proto(size: flags.FlagValues) -> timing.Section:
  """(a), (b): the paper's network with prototypes."""
  return _personalized(size, 'proto', _PROTO, size.local_steps, 'prototypes')


def maml(size: flags.FlagValues) -> timing.Section:
  """(a), (b): the paper's network with MAML."""
  title = f'MAML s={size.maml_steps}, second order'
  t = _maml(size.maml_steps)
  return _personalized(size, 'maml', t, size.maml_local_steps, title)


def tiny(size: flags.FlagValues) -> timing.Section:
  """(e): the network for digits, in which all time is overhead."""
  del size
  subject, devices, steps, batch_size = problem.TINY, 10, 10, 10
  batches, pairs = (
    subject.batches(devices, batch_size, steps * per_step, 30)
    for per_step in (1, 2)
  )
  rounds = {
    **_methods(subject, _NONE, batches),
    _BARE: cases.BareRounds(subject, _NONE, batches),
    **_tff(subject, batches),
    **_methods(subject, _PROTO, pairs, 'proto'),
    **_methods(subject, _maml(5), pairs, 'maml'),
  }
  return timing.Section(
    'tiny',
    f'A tiny network (64-32-16-10), {devices} devices × {steps} steps × batch'
    f' {batch_size}, a round',
    rounds,
    (_BARE, 'FedAvg', 'TFF FedAvg (VariableModel)'),
    # As in training: the first round after others is slower.
    runs_on_end=10,
  )


def evaluation(size: flags.FlagValues) -> timing.Section:
  """(f): the personalized test of 100 devices."""
  devices, examples, steps = 100, 50, size.maml_steps
  data = [
    tuple(
      problem.PAPER.examples(i, examples) for i in (device, devices + device)
    )
    for device in range(devices)
  ]
  measured = {}
  for name, t in (('Proto', _PROTO), (f'MAML s={steps}', _maml(steps))):
    measured[name] = cases.OurEvaluation(t, data)
    measured[f'{name}, bare loop'] = cases.BareEvaluation(t, data)
  return timing.Section(
    'evaluation',
    f"Personalized test of {devices} devices, the paper's network, {examples}"
    ' training and test examples each',
    measured,
    tuple(name for name in measured if 'bare' in name),
  )


def population(size: flags.FlagValues) -> timing.Section:
  """(g): 10 participants of populations of 10², 10⁴ and 10⁶ devices."""
  del size
  batches = problem.TINY.batches(10, 10, 20, 30)
  return timing.Section(
    'population',
    'A population with 10 participants a round (tiny network, PFLDyn proto)',
    {
      f'{number:,} devices': cases.RoundsWithMemory(
        cases.PopulationRounds(problem.TINY, _PROTO, _DYN, batches, number),
        number=20,
      )
      for number in (10**2, 10**4, 10**6)
    },
    ('100 devices',),
  )


def _rounds_of(size: flags.FlagValues, number: int) -> cases.OurRounds:
  """Short rounds of the paper's network with a number of participants."""
  batches = problem.PAPER.batches(number, size.batch_size, 2, size.batch_size)
  return cases.OurRounds(problem.PAPER, _NONE, _DYN, batches)


def participants(size: flags.FlagValues) -> timing.Section:
  """(h): 1 to 200 participants a round."""
  return timing.Section(
    'participants',
    "Participants a round (the paper's network, PFLDyn, 2 local steps)",
    {
      f'{number} participants': cases.RoundsWithMemory(_rounds_of(size, number))
      for number in (1, 2, 5, 10, 20, 50, 100, 200)
    },
  )


def concurrency(size: flags.FlagValues) -> timing.Section:
  """Devices that are simulated at a time."""
  return timing.Section(
    'concurrency',
    'Devices simulated at a time: 16 participants of the same',
    {
      f'{number} at a time': cases.RoundsWithMemory(
        _rounds_of(size, 16), max_concurrency=number
      )
      for number in (1, 2, 4, 8)
    },
  )


def startup(size: flags.FlagValues) -> timing.Section:
  """From the command to its end."""
  del size
  return timing.Section(
    'startup',
    'From the command to its end',
    {
      'tasks.train --help': cases.Train('--help'),
      'tasks.train, a round of digits with its test and files': cases.Train(
        '--rounds=1'
      ),
    },
  )


#: The sections in the order in which they run.
SECTIONS = {
  section.__name__: section
  for section in (
    *(plain, proto, maml, tiny, evaluation),
    *(population, participants, concurrency, startup),
  )
}
