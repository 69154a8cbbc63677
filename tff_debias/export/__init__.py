"""The personalized model of one client, for use without this package."""

from tff_debias.export.client import TOLERANCE
from tff_debias.export.client import ExportError
from tff_debias.export.client import personalized_keras_model
from tff_debias.export.files import Export
from tff_debias.export.files import export_personalized_model
