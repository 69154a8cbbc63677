"""The names that papers use for the methods and personalizations."""

_NAMES = {
  'fed_avg': 'FedAvg',
  'fed_prox': 'FedProx',
  'fed_dyn': 'FedDyn',
  'scaffold': 'SCAFFOLD',
  'per_fed_avg': 'Per-FedAvg',
  'pfl_dyn': 'PFLDyn',
  'pfl_scaf': 'PFLScaf',
  'none': 'No personalization',
  'maml': 'MAML',
  'proto': 'Prototypes',
}


def name(setting: str) -> str:
  """The name of a method or personalization; one's own keeps its own."""
  return _NAMES.get(setting, setting)
