"""Where clients keep their states between rounds."""

from tff_debias.storage.client_storage import ClientStorage
from tff_debias.storage.lineage import Lineage
from tff_debias.storage.lineage import Receipt
from tff_debias.storage.lineage import receipt
from tff_debias.storage.lineage import start_lineage
from tff_debias.storage.state_manager import StorageStateManager
from tff_debias.storage.upkeep import ClientStorageError
