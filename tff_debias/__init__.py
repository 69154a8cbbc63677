"""Debiased personalized federated training in TensorFlow Federated."""

from tff_debias import partitions
from tff_debias import runtime
from tff_debias.client_data import client_data_from
from tff_debias.client_data import compose_evaluation_with_client_data
from tff_debias.client_data import compose_with_client_data
from tff_debias.corrections import Correction
from tff_debias.corrections import Dyn
from tff_debias.corrections import NoCorrection
from tff_debias.corrections import Prox
from tff_debias.corrections import Scaf
from tff_debias.evaluation import build_client_evaluation
from tff_debias.evaluation import build_personalize_fn
from tff_debias.evaluation import build_personalized_evaluation
from tff_debias.evaluation import build_step_evaluation
from tff_debias.export import export_personalized_model
from tff_debias.export import personalized_keras_model
from tff_debias.learning_process import build_learning_process
from tff_debias.learning_process import exponential_decay
from tff_debias.learning_process import get_all_model_weights
from tff_debias.methods import build_fed_avg
from tff_debias.methods import build_fed_dyn
from tff_debias.methods import build_fed_prox
from tff_debias.methods import build_per_fed_avg
from tff_debias.methods import build_pfl_dyn
from tff_debias.methods import build_pfl_scaf
from tff_debias.methods import build_scaffold
from tff_debias.models import Model
from tff_debias.models import from_functional
from tff_debias.models import from_keras
from tff_debias.personalizations import Maml
from tff_debias.personalizations import NoPersonalization
from tff_debias.personalizations import Personalization
from tff_debias.personalizations import Proto
from tff_debias.privacy import dp_aggregator
from tff_debias.privacy import privacy_spent
from tff_debias.privacy import secure_aggregator
from tff_debias.storage import ClientStorage
from tff_debias.storage import StorageStateManager
from tff_debias.training import get_batches_per_step
from tff_debias.training import train

# In the order of the API reference.
__all__ = [
  'build_fed_avg',
  'build_per_fed_avg',
  'build_fed_dyn',
  'build_pfl_dyn',
  'build_scaffold',
  'build_pfl_scaf',
  'build_fed_prox',
  'build_learning_process',
  'Personalization',
  'NoPersonalization',
  'Maml',
  'Proto',
  'Correction',
  'NoCorrection',
  'Dyn',
  'Scaf',
  'Prox',
  'exponential_decay',
  'get_all_model_weights',
  'Model',
  'from_keras',
  'from_functional',
  'train',
  'get_batches_per_step',
  'partitions',
  'client_data_from',
  'compose_with_client_data',
  'compose_evaluation_with_client_data',
  'build_personalized_evaluation',
  'build_client_evaluation',
  'build_step_evaluation',
  'build_personalize_fn',
  'export_personalized_model',
  'personalized_keras_model',
  'dp_aggregator',
  'secure_aggregator',
  'privacy_spent',
  'ClientStorage',
  'StorageStateManager',
  'runtime',
]
