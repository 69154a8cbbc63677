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
its errors.
"""

import tensorflow_federated as tff

from tff_debias import aggregation
from tff_debias import corrections
from tff_debias import learning_process
from tff_debias import method as method_lib
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib

_UNIFORM = tff.learning.ClientWeighting.UNIFORM


def build_fed_avg(
  model: models.Model,
  *,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  client_weighting: tff.learning.ClientWeighting = _UNIFORM,
  model_aggregator: aggregation.AggregationFactory | None = None,
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
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
    model,
    personalizations.NoPersonalization(),
    corrections.NoCorrection(),
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    client_weighting=client_weighting,
    model_aggregator=model_aggregator,
    client_optimizer_fn=client_optimizer_fn,
    server_optimizer_fn=server_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    seed=seed,
  )


def build_per_fed_avg(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  client_weighting: tff.learning.ClientWeighting = _UNIFORM,
  model_aggregator: aggregation.AggregationFactory | None = None,
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
) -> tff.learning.templates.LearningProcess:
  """Per-FedAvg: personalized, no correction.

  FedAvg of the meta-loss f_i(w) = L_i(T_i(w)).

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
    model,
    personalization,
    corrections.NoCorrection(),
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    client_weighting=client_weighting,
    model_aggregator=model_aggregator,
    client_optimizer_fn=client_optimizer_fn,
    server_optimizer_fn=server_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    seed=seed,
  )


def build_fed_dyn(
  model: models.Model,
  *,
  alpha: float,
  decay: float = 0.0,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  track_all: bool = False,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  model_aggregator: aggregation.AggregationFactory | None = None,
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
) -> tff.learning.templates.LearningProcess:
  """FedDyn: no personalization, corrected by Dyn.

  R_i(w) = -λ_i + α (w - w^t); w^{t+1} = mean_S w_i - mean λ_i / α.

  >>> process = tff_debias.build_fed_dyn(
  ...     model, alpha=0.1, num_clients=100, storage=storage
  ... )

  Args:
    alpha: The strength α of the regularizer.
    decay: As in `Dyn`; 0 is the paper's method.
    num_clients: m, the number of clients in the population.
    storage: Where clients keep their λ_i.

  Other arguments: see `build_learning_process`.

  References:
    Acar et al., *Federated Learning Based on Dynamic Regularization*, ICLR
    2021, https://openreview.net/forum?id=B7v4QMR6Z9w
  """
  return learning_process.build_learning_process(
    model,
    personalizations.NoPersonalization(),
    corrections.Dyn(alpha, decay),
    num_clients=num_clients,
    storage=storage,
    track_all=track_all,
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    model_aggregator=model_aggregator,
    client_optimizer_fn=client_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    seed=seed,
  )


def build_pfl_dyn(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  alpha: float,
  decay: float = 0.0,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  track_all: bool = False,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  model_aggregator: aggregation.AggregationFactory | None = None,
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
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
    decay: As in `Dyn`; 0 is the paper's method.
    num_clients: m, the number of clients in the population.
    storage: Where clients keep their λ_i.

  Other arguments: see `build_learning_process`.

  References:
    Acar et al., *Debiasing Model Updates for Improving Personalized Federated
    Training*, ICML 2021, https://proceedings.mlr.press/v139/acar21a.html
  """
  return learning_process.build_learning_process(
    model,
    personalization,
    corrections.Dyn(alpha, decay),
    num_clients=num_clients,
    storage=storage,
    track_all=track_all,
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    model_aggregator=model_aggregator,
    client_optimizer_fn=client_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    seed=seed,
  )


def build_scaffold(
  model: models.Model,
  *,
  equal_steps: bool = False,
  decay: float = 0.0,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  track_all: bool = False,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  model_aggregator: aggregation.AggregationFactory | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
) -> tff.learning.templates.LearningProcess:
  """SCAFFOLD: no personalization, corrected by control variates.

  R_i(w) = c - c_i; w^{t+1} = mean_S w_i.

  >>> process = tff_debias.build_scaffold(
  ...     model, num_clients=100, storage=storage
  ... )

  Args:
    equal_steps: Whether all participants of a round take the same number of
      local steps. A client then sends one model instead of two.
    decay: As in `Scaf`; 0 is the published method.
    num_clients: m, the number of clients in the population.
    storage: Where clients keep their c_i.

  Other arguments: see `build_learning_process`.

  References:
    Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for
    Federated Learning*, ICML 2020, https://arxiv.org/abs/1910.06378
  """
  return learning_process.build_learning_process(
    model,
    personalizations.NoPersonalization(),
    corrections.Scaf(equal_steps, decay),
    num_clients=num_clients,
    storage=storage,
    track_all=track_all,
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    model_aggregator=model_aggregator,
    server_optimizer_fn=server_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    seed=seed,
  )


def build_pfl_scaf(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  equal_steps: bool = False,
  decay: float = 0.0,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  track_all: bool = False,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  model_aggregator: aggregation.AggregationFactory | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
) -> tff.learning.templates.LearningProcess:
  """PFLScaf: personalized, corrected by control variates.

  R_i(w) = c - c_i; w^{t+1} = mean_S w_i.

  >>> process = tff_debias.build_pfl_scaf(
  ...     model, tff_debias.Maml(num_steps=1), num_clients=100, storage=storage
  ... )

  Args:
    personalization: T_i, `Maml` or `Proto`.
    equal_steps: Whether all participants of a round take the same number of
      local steps. A client then sends one model instead of two.
    decay: As in `Scaf`; 0 is the published method.
    num_clients: m, the number of clients in the population.
    storage: Where clients keep their c_i.

  Other arguments: see `build_learning_process`.

  References:
    Acar et al., *Debiasing Model Updates for Improving Personalized Federated
    Training*, ICML 2021, https://proceedings.mlr.press/v139/acar21a.html
  """
  return learning_process.build_learning_process(
    model,
    personalization,
    corrections.Scaf(equal_steps, decay),
    num_clients=num_clients,
    storage=storage,
    track_all=track_all,
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    model_aggregator=model_aggregator,
    server_optimizer_fn=server_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    seed=seed,
  )


def build_fed_prox(
  model: models.Model,
  *,
  mu: float,
  learning_rate: float = 0.1,
  learning_rate_fn: method_lib.LearningRateFn | None = None,
  weight_decay: float = 0.0,
  max_grad_norm: float | None = None,
  client_weighting: tff.learning.ClientWeighting = _UNIFORM,
  model_aggregator: aggregation.AggregationFactory | None = None,
  client_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
  max_update_norm: float | None = None,
  metrics_aggregator: method_lib.MetricsAggregator | None = None,
  seed: int = 0,
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
    model,
    personalizations.NoPersonalization(),
    corrections.Prox(mu),
    learning_rate=learning_rate,
    learning_rate_fn=learning_rate_fn,
    weight_decay=weight_decay,
    max_grad_norm=max_grad_norm,
    client_weighting=client_weighting,
    model_aggregator=model_aggregator,
    client_optimizer_fn=client_optimizer_fn,
    server_optimizer_fn=server_optimizer_fn,
    max_update_norm=max_update_norm,
    metrics_aggregator=metrics_aggregator,
    seed=seed,
  )
