"""Models as pure functions of their weights.

A personalization differentiates through steps of gradient descent. It needs the
model as a function of its weights, not as an object that owns them.
"""

from tff_debias.models.from_tff import as_model
from tff_debias.models.functional import from_functional
from tff_debias.models.keras import find_feature
from tff_debias.models.keras import from_keras
from tff_debias.models.keras import is_subclassed
from tff_debias.models.model import Metrics
from tff_debias.models.model import Model
from tff_debias.models.model import ModelWeights
from tff_debias.models.model import Outputs
from tff_debias.models.model import split_batch
from tff_debias.models.tracing import call
from tff_debias.models.tracing import computation
from tff_debias.models.tracing import outside
from tff_debias.models.tracing import specs_of
from tff_debias.models.tracing import trace
