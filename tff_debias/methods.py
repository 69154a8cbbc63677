"""The published methods by their names, thin over `build_learning_process`.

| | no personalization | MAML or prototypes |
| --- | --- | --- |
| no correction | `build_fed_avg` | `build_per_fed_avg` |
| Dyn | `build_fed_dyn` | `build_pfl_dyn` |
| Scaf | `build_scaffold` | `build_pfl_scaf` |
| Prox | `build_fed_prox` | |

Prox with a personalization has no name: `build_learning_process` builds it. The
methods of the second column, and PFLDyn and PFLScaf above all, are those of
Acar et al., *Debiasing Model Updates for Improving Personalized Federated
Training*, ICML 2021, https://proceedings.mlr.press/v139/acar21a.html

All of them return the `LearningProcess` of `build_learning_process`, and raise
its errors. They take its other arguments as far as these fit the method.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any
from typing import TypeVar

import tensorflow_federated as tff

from tff_debias import corrections
from tff_debias import learning_process
from tff_debias import models
from tff_debias import personalizations

_Builder = TypeVar('_Builder', bound=Callable[..., Any])
_NONE = personalizations.NoPersonalization()


def _takes_options(
  *without: str, keeps_state: bool
) -> Callable[[_Builder], _Builder]:
  """Puts options of `build_learning_process` into a builder's signature.

  `help` then shows them, and others are a `TypeError`. The method does not take
  those of `without`. If its clients keep a state, `num_clients` and `storage`
  have no default; if not, it does not take them and `track_all` either.
  """
  required = ('num_clients', 'storage') if keeps_state else ()
  if not keeps_state:
    without += ('num_clients', 'storage', 'track_all')

  def decorate(builder: _Builder) -> _Builder:
    *own, _ = inspect.signature(builder).parameters.values()
    options = inspect.signature(
      learning_process.build_learning_process
    ).parameters
    fitting = [
      p.replace(default=p.empty) if p.name in required else p
      for p in options.values()
      if p.kind is p.KEYWORD_ONLY and p.name not in without
    ]
    signature = inspect.signature(builder).replace(parameters=[*own, *fitting])

    @functools.wraps(builder)
    def build(*args: Any, **options: Any) -> Any:
      signature.bind(*args, **options)
      return builder(*args, **options)

    build.__signature__ = signature  # type: ignore[attr-defined]
    return build  # type: ignore[return-value]

  return decorate


@_takes_options(keeps_state=False)
def build_fed_avg(
  model: models.Model, **options: Any
) -> tff.learning.templates.LearningProcess:
  """FedAvg: no personalization, no correction.

  The server takes w^{t+1} = mean_S w_i.

  >>> process = tff_debias.build_fed_avg(model)

  Other arguments: see `build_learning_process`.

  References:
    McMahan et al., *Communication-Efficient Learning of Deep Networks from
    Decentralized Data*, AISTATS 2017, https://arxiv.org/abs/1602.05629
  """
  return learning_process.build_learning_process(
    model, _NONE, corrections.NoCorrection(), **options
  )


@_takes_options(keeps_state=False)
def build_per_fed_avg(
  model: models.Model,
  personalization: personalizations.Personalization,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """Per-FedAvg: FedAvg of the meta-loss f_i(w) = L_i(T_i(w)), no correction.

  >>> process = tff_debias.build_per_fed_avg(
  ...     model, tff_debias.Maml(num_steps=1)
  ... )

  Args:
    personalization: T_i, `Maml` or `Proto`.

  Other arguments: see `build_learning_process`.

  References:
    Fallah et al., *Personalized Federated Learning with Theoretical
    Guarantees*, NeurIPS 2020, https://arxiv.org/abs/2002.07948
  """
  return learning_process.build_learning_process(
    model, personalization, corrections.NoCorrection(), **options
  )


@_takes_options('server_optimizer_fn', keeps_state=True)
def build_fed_dyn(
  model: models.Model,
  *,
  alpha: float,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """FedDyn: `build_pfl_dyn` without personalization.

  >>> process = tff_debias.build_fed_dyn(
  ...     model, alpha=0.1, num_clients=100, storage=storage
  ... )

  References:
    Acar et al., *Federated Learning Based on Dynamic Regularization*, ICLR
    2021, https://openreview.net/forum?id=B7v4QMR6Z9w
  """
  return build_pfl_dyn(model, _NONE, alpha=alpha, **options)


@_takes_options('server_optimizer_fn', keeps_state=True)
def build_pfl_dyn(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  alpha: float,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """PFLDyn, Algorithm 1: personalized, corrected by Dyn.

  R_i(w) = -λ_i + α (w - w^t); w^{t+1} = mean_S w_i - mean λ_i / α.

  >>> process = tff_debias.build_pfl_dyn(
  ...     model, tff_debias.Maml(num_steps=1),
  ...     alpha=0.1, num_clients=100, storage=storage
  ... )

  Args:
    personalization: T_i, `Maml` or `Proto`.
    alpha: The strength α of the regularizer.

  Other arguments: see `build_learning_process`.
  """
  return learning_process.build_learning_process(
    model, personalization, corrections.Dyn(alpha), **options
  )


@_takes_options('client_optimizer_fn', keeps_state=True)
def build_scaffold(
  model: models.Model,
  *,
  num_steps: int | None = None,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """SCAFFOLD: `build_pfl_scaf` without personalization.

  >>> process = tff_debias.build_scaffold(
  ...     model, num_clients=100, storage=storage
  ... )

  References:
    Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for
    Federated Learning*, ICML 2020, https://arxiv.org/abs/1910.06378
  """
  return build_pfl_scaf(model, _NONE, num_steps=num_steps, **options)


@_takes_options('client_optimizer_fn', keeps_state=True)
def build_pfl_scaf(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  num_steps: int | None = None,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """PFLScaf: personalized, corrected by control variates.

  R_i(w) = c - c_i; w^{t+1} = mean_S w_i.

  >>> process = tff_debias.build_pfl_scaf(
  ...     model, tff_debias.Maml(num_steps=1), num_clients=100, storage=storage
  ... )

  Args:
    personalization: T_i, `Maml` or `Proto`.
    num_steps: The number K of local steps, if all participants take the same:
      a client then sends one model instead of two.

  Other arguments: see `build_learning_process`.
  """
  return learning_process.build_learning_process(
    model, personalization, corrections.Scaf(num_steps), **options
  )


@_takes_options(keeps_state=False)
def build_fed_prox(
  model: models.Model, *, mu: float, **options: Any
) -> tff.learning.templates.LearningProcess:
  """FedProx: no personalization, corrected by the proximal term.

  R_i(w) = μ (w - w^t); w^{t+1} = mean_S w_i.

  >>> process = tff_debias.build_fed_prox(model, mu=0.1)

  Args:
    mu: The strength μ of the proximal term.

  Other arguments: see `build_learning_process`.

  References:
    Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020,
    https://arxiv.org/abs/1812.06127
  """
  return learning_process.build_learning_process(
    model, _NONE, corrections.Prox(mu), **options
  )
