"""The methods of the papers by name: thin over `build_learning_process`.

| | no personalization | MAML or prototypes |
| --- | --- | --- |
| no correction | `build_fed_avg` | `build_per_fed_avg` |
| Dyn | `build_fed_dyn` | `build_pfl_dyn` |
| Scaf | `build_scaffold` | `build_pfl_scaf` |

What they take besides is what `build_learning_process` takes.
"""

from typing import Any

import tensorflow_federated as tff

from tff_debias import corrections
from tff_debias import learning_process
from tff_debias import models
from tff_debias import personalizations
from tff_debias import storage as storage_lib


def build_fed_avg(
  model: models.Model, **options: Any
) -> tff.learning.templates.LearningProcess:
  """FedAvg (McMahan et al., 2017): no personalization, no correction."""
  return learning_process.build_learning_process(
    model,
    personalizations.NoPersonalization(),
    corrections.NoCorrection(),
    **options,
  )


def build_per_fed_avg(
  model: models.Model,
  personalization: personalizations.Personalization,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """Per-FedAvg (Fallah et al., 2020): personalized, no correction."""
  return learning_process.build_learning_process(
    model, personalization, corrections.NoCorrection(), **options
  )


def build_fed_dyn(
  model: models.Model,
  *,
  alpha: float,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """FedDyn (Acar et al., ICLR 2021): no personalization, corrected."""
  return build_pfl_dyn(
    model,
    personalizations.NoPersonalization(),
    alpha=alpha,
    num_clients=num_clients,
    storage=storage,
    **options,
  )


def build_pfl_dyn(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  alpha: float,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """PFLDyn (Acar et al., ICML 2021, Algorithm 1): personalized, corrected."""
  return learning_process.build_learning_process(
    model,
    personalization,
    corrections.Dyn(alpha),
    num_clients=num_clients,
    storage=storage,
    **options,
  )


def build_scaffold(
  model: models.Model,
  *,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """SCAFFOLD (Karimireddy et al., 2020): no personalization, corrected."""
  return build_pfl_scaf(
    model,
    personalizations.NoPersonalization(),
    num_clients=num_clients,
    storage=storage,
    **options,
  )


def build_pfl_scaf(
  model: models.Model,
  personalization: personalizations.Personalization,
  *,
  num_clients: int,
  storage: storage_lib.ClientStorage,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """PFLScaf (Acar et al., ICML 2021): personalized, with control variates."""
  return learning_process.build_learning_process(
    model,
    personalization,
    corrections.Scaf(),
    num_clients=num_clients,
    storage=storage,
    **options,
  )
