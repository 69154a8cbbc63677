"""The names that papers use for methods, personalizations and data sets."""

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
  'cifar10': 'CIFAR-10',
  'cifar100': 'CIFAR-100',
  'emnist': 'EMNIST',
  'emnist_digits': 'EMNIST digits',
  'fashion_mnist': 'Fashion-MNIST',
  'fashion_mnist_small': 'Fashion-MNIST, 14×14',
  'mini_imagenet': 'mini-ImageNet',
  'shakespeare': 'Shakespeare',
}


def name(setting: str) -> str:
  """The name of a method, a personalization or a task; or the setting's."""
  return _NAMES.get(setting, setting)
