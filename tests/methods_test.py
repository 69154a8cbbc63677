import inspect

import pytest
import small_models

import tff_debias
from tff_debias import learning_process

MAML, NONE = tff_debias.Maml(num_steps=1), tff_debias.NoPersonalization()
PLAIN, DYN = tff_debias.NoCorrection(), tff_debias.Dyn(0.4)
PROX, SCAF = tff_debias.Prox(2), tff_debias.Scaf(num_steps=3)
# What some methods do not take.
OF_STATES = {'num_clients', 'storage', 'track_all'}
OF_SERVER, OF_CLIENTS = {'server_optimizer_fn'}, {'client_optimizer_fn'}


@pytest.mark.parametrize(
  ('build', 'own', 'pair', 'not_taken'),
  [
    (tff_debias.build_fed_avg, {}, [NONE, PLAIN], OF_STATES),
    (tff_debias.build_per_fed_avg, {}, [MAML, PLAIN], OF_STATES),
    (tff_debias.build_fed_prox, {'mu': 2}, [NONE, PROX], OF_STATES),
    (tff_debias.build_fed_dyn, {'alpha': 0.4}, [NONE, DYN], OF_SERVER),
    (tff_debias.build_pfl_dyn, {'alpha': 0.4}, [MAML, DYN], OF_SERVER),
    (tff_debias.build_scaffold, {'num_steps': 3}, [NONE, SCAF], OF_CLIENTS),
    (tff_debias.build_pfl_scaf, {'num_steps': 3}, [MAML, SCAF], OF_CLIENTS),
  ],
)
def test_a_named_method_is_its_pair_with_the_options_that_fit(
  monkeypatch, build, own, pair, not_taken
):
  arguments = [MAML] if MAML in pair else []
  theirs = inspect.signature(learning_process.build_learning_process).parameters
  monkeypatch.setattr(
    learning_process,
    'build_learning_process',
    lambda *args, **options: (list(args), options),
  )
  fitting = set(theirs) - {'model', 'personalization', 'correction'} - not_taken
  options = {name: object() for name in fitting}
  assert build('model', *arguments, **own, **options) == (
    ['model', *pair],
    options,
  )
  shown = set(inspect.signature(build).parameters)
  assert shown - set(theirs) <= {'alpha', 'mu', 'num_steps'}
  assert fitting <= shown and not shown & not_taken
  for name in not_taken:
    with pytest.raises(TypeError, match=f"unexpected keyword .*'{name}'"):
      build('model', *arguments, **own, **options, **{name: None})


def test_what_is_missing_is_named():
  model = small_models.linear_model()
  with pytest.raises(TypeError, match="missing a required .*'alpha'"):
    tff_debias.build_fed_dyn(model)
