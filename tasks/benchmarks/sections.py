"""The sections of the benchmark: which cases are compared with each other."""

from collections.abc import Sequence
import dataclasses

import tensorflow as tf

from tasks.benchmarks import cases
from tasks.benchmarks import problem
from tasks.benchmarks import timing
import tff_debias

_DYN = tff_debias.Dyn(0.1)
_CORRECTIONS = (tff_debias.NoCorrection(), _DYN, tff_debias.Scaf())
_NAMES = ('FedAvg', 'PFLDyn', 'PFLScaf')
_PLAIN_NAMES = ('FedAvg', 'FedDyn', 'SCAFFOLD')
_EXAMPLES = 500
_BARE = 'bare TensorFlow loop'
_TFF_IN_ITS_CONTEXT = "TFF FedAvg (VariableModel) in TFF's context"
_TFF_NAMES = ('FedAvg (VariableModel)', 'FedAvg (FunctionalModel)')


@dataclasses.dataclass(frozen=True)
class Size:
  """The amount of work in the cases; the flags of `tasks.benchmark`."""

  clients: int
  local_steps: int
  maml_local_steps: int
  maml_steps: int
  batch_size: int
  repetitions: int
  pfl_python: Sequence[str]


def _personalization(name: str, maml_steps: int) -> tff_debias.Personalization:
  if name == 'maml':
    return tff_debias.Maml(maml_steps, cases.MAML_RATE)
  none, proto = tff_debias.NoPersonalization, tff_debias.Proto
  return {'none': none, 'proto': proto}[name]()


def _methods(
  subject: problem.Problem,
  personalization: str,
  maml_steps: int,
  batches: Sequence[tf.data.Dataset],
) -> dict[str, timing.Case]:
  """Our three methods of a personalization."""
  names = _PLAIN_NAMES
  if personalization != 'none':
    names = [f'{name} {personalization}' for name in _NAMES]
  t = _personalization(personalization, maml_steps)
  return {
    name: cases.OurRounds(subject, t, correction, batches)
    for name, correction in zip(names, _CORRECTIONS, strict=True)
  }


def plain(size: Size) -> timing.Section:
  """(a)–(d): the paper's network without personalization, and the peers."""
  paper = problem.PAPER
  batches = paper.batches(
    size.clients, size.batch_size, size.local_steps, _EXAMPLES
  )
  epochs, rest = divmod(size.local_steps * size.batch_size, _EXAMPLES)
  numbers = (size.clients, _EXAMPLES, size.batch_size, epochs)
  pfl = {
    f'pfl {name}': cases.PflRounds(
      (size.pfl_python, method, *numbers, size.repetitions + 1)
    )
    for name, method in (('FedAvg', 'fed_avg'), ('SCAFFOLD', 'scaffold'))
    # pfl counts epochs, so the number of steps must be one of whole epochs.
    if not rest
  }
  return timing.Section(
    'plain',
    f"The paper's network (797,962 weights), no personalization:"
    f' {size.clients} devices × {size.local_steps} steps ×'
    f' batch {size.batch_size}, a round',
    {
      **_methods(paper, 'none', 1, batches),
      _BARE: cases.BareRounds(paper, 'none', 1, batches),
      **{
        f'TFF {name}': cases.TffRounds(paper, name, batches)
        for name in (*_TFF_NAMES, 'MimeLite')
      },
      _TFF_IN_ITS_CONTEXT: cases.TffRoundsInItsContext(
        paper, _TFF_NAMES[0], batches
      ),
      **pfl,
    },
    (
      *(_BARE, 'FedAvg', 'TFF FedAvg (VariableModel)', _TFF_IN_ITS_CONTEXT),
      'pfl FedAvg',
    ),
  )


def _personalized(
  size: Size, personalization: str, steps: int, title: str
) -> timing.Section:
  paper = problem.PAPER
  batches = paper.batches(size.clients, size.batch_size, 2 * steps, _EXAMPLES)
  work = (paper, personalization, size.maml_steps, batches)
  return timing.Section(
    personalization,
    f"The paper's network, {title}: {size.clients} devices × {steps} steps ×"
    f' batch {size.batch_size} (support and query), a round',
    {**_methods(*work), _BARE: cases.BareRounds(*work)},
    (_BARE, f'FedAvg {personalization}'),
  )


def proto(size: Size) -> timing.Section:
  """(a), (b): the paper's network with prototypes."""
  return _personalized(size, 'proto', size.local_steps, 'prototypes')


def maml(size: Size) -> timing.Section:
  """(a), (b): the paper's network with MAML."""
  title = f'MAML s={size.maml_steps}, second order'
  return _personalized(size, 'maml', size.maml_local_steps, title)


def tiny(size: Size) -> timing.Section:
  """(e): the network for digits, in which all time is overhead."""
  del size
  subject, devices, steps, batch_size = problem.TINY, 10, 10, 10
  batches, pairs = (
    subject.batches(devices, batch_size, steps * per_step, 30)
    for per_step in (1, 2)
  )
  rounds = {
    **_methods(subject, 'none', 1, batches),
    _BARE: cases.BareRounds(subject, 'none', 1, batches),
    **{
      f'TFF {name}': cases.TffRounds(subject, name, batches)
      for name in _TFF_NAMES
    },
    _TFF_IN_ITS_CONTEXT: cases.TffRoundsInItsContext(
      subject, _TFF_NAMES[0], batches
    ),
    **_methods(subject, 'proto', 1, pairs),
    **_methods(subject, 'maml', 5, pairs),
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


def evaluation(size: Size) -> timing.Section:
  """(f): the personalized test of 100 devices."""
  devices, examples, steps = 100, 50, size.maml_steps
  data = [
    tuple(
      problem.PAPER.examples(i, examples) for i in (device, devices + device)
    )
    for device in range(devices)
  ]
  names = {'proto': 'Proto', 'maml': f'MAML s={steps}'}
  measured = {}
  for key, name in names.items():
    t = _personalization(key, steps)
    measured[name] = cases.OurEvaluation(t, data)
    measured[f'{name}, bare loop'] = cases.BareEvaluation(key, steps, data)
  return timing.Section(
    'evaluation',
    f"Personalized test of {devices} devices, the paper's network, {examples}"
    ' training and test examples each',
    measured,
    tuple(f'{name}, bare loop' for name in names.values()),
  )


def population(size: Size) -> timing.Section:
  """(g): 10 participants of populations of 10², 10⁴ and 10⁶ devices."""
  del size
  batches = problem.TINY.batches(10, 10, 20, 30)
  return timing.Section(
    'population',
    'A population with 10 participants a round (tiny network, PFLDyn proto)',
    {
      f'{number:,} devices': cases.RoundsWithMemory(
        cases.PopulationRounds(
          problem.TINY, tff_debias.Proto(), _DYN, batches, number
        ),
        number=20,
      )
      for number in (10**2, 10**4, 10**6)
    },
    ('100 devices',),
  )


def _rounds_of(size: Size, number: int) -> cases.OurRounds:
  """Short rounds of the paper's network with a number of participants."""
  batches = problem.PAPER.batches(number, size.batch_size, 2, size.batch_size)
  none = tff_debias.NoPersonalization()
  return cases.OurRounds(problem.PAPER, none, _DYN, batches)


def participants(size: Size) -> timing.Section:
  """(h): 1 to 200 participants a round."""
  return timing.Section(
    'participants',
    "Participants a round (the paper's network, PFLDyn, 2 local steps)",
    {
      f'{number} participants': cases.RoundsWithMemory(_rounds_of(size, number))
      for number in (1, 2, 5, 10, 20, 50, 100, 200)
    },
  )


def concurrency(size: Size) -> timing.Section:
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


def startup(size: Size) -> timing.Section:
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
