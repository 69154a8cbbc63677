"""No personalization: the device uses the meta-model as it is."""

import dataclasses
import math

from tff_debias.personalizations import base


@dataclasses.dataclass(frozen=True)
class NoPersonalization(base.Personalization):
  """T_i(w) = w, so that f_i(w) = L(w; A)."""

  batches_per_step = 1
  default_max_grad_norm = math.inf

  def meta_loss(self, model, weights, batches, weight_decay):
    """See base class."""
    del weight_decay
    return base.supervised_result(model, weights, batches[0], training=True)

  def personalize(self, model, weights, dataset, max_grad_norm):
    """See base class."""
    del model, dataset, max_grad_norm
    return weights
