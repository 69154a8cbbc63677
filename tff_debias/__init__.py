"""Debiased personalized federated training in TensorFlow Federated."""

from tff_debias.corrections import Correction
from tff_debias.corrections import Dyn
from tff_debias.corrections import NoCorrection
from tff_debias.corrections import Scaf
from tff_debias.evaluation import build_device_evaluation
from tff_debias.evaluation import build_personalize_fn
from tff_debias.evaluation import build_personalized_evaluation
from tff_debias.evaluation import build_step_evaluation
from tff_debias.learning_process import build_learning_process
from tff_debias.learning_process import exponential_decay
from tff_debias.learning_process import get_all_model_weights
from tff_debias.methods import build_fed_avg
from tff_debias.methods import build_fed_dyn
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
from tff_debias.storage import DeviceStorage
from tff_debias.storage import StorageStateManager
