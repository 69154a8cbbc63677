"""No correction: FedAvg, or Per-FedAvg when personalized."""

import dataclasses

from tff_debias.corrections import base


@dataclasses.dataclass(frozen=True)
class NoCorrection(base.Correction):
  """R_i(w) = 0, and the server takes the mean of the participants' models."""

  def gradient_term(self, state, mean_state, weights, start):
    """See base class."""
    return None
