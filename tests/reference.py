"""Algorithm 1 once more: NumPy in float64, one line after the other.

The losses are analytic in the weights, so that a step h i in the imaginary
direction gives their derivatives to the last digit: Im f(w + h i) / h.

A network is its list of weights: kernel and bias of each layer, with tanh
between layers. A kernel of four dimensions is a convolution, which average
pooling of 2 × 2 and flattening follow.
"""

import math

import numpy as np

from tff_debias import corrections


def derivative(function, weights):
  """The gradient of an analytic function of the weights."""
  step = 1e-30
  gradient = [np.zeros(np.shape(w)) for w in weights]
  for i, w in enumerate(weights):
    for place in np.ndindex(*np.shape(w)):
      shifted = [np.array(v, np.complex128) for v in weights]
      shifted[i][place] += step * 1j
      gradient[i][place] = function(shifted).imag / step
  return gradient


def _hidden_layers(weights, x):
  """The feature, and for each hidden layer its kernel, input and output."""
  layers = []
  for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
    if kernel.ndim == 4:
      x = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
      x = np.moveaxis(x, 3, -1).reshape(*x.shape[:3], -1)
    flat_kernel = kernel.reshape(-1, kernel.shape[-1])
    output = np.tanh(x @ flat_kernel + bias)
    layers.append((kernel, x, output))
    x = output
    if kernel.ndim == 4:
      n, rows, columns, depth = x.shape
      x = x.reshape(n, rows // 2, 2, columns // 2, 2, depth).mean((2, 4))
      x = x.reshape(n, -1)
  return x, layers


def feature(weights, x):
  return _hidden_layers(weights, x)[0]


def logits(weights, x):
  return feature(weights, x) @ weights[-2] + weights[-1]


def cross_entropy(scores, labels):
  """The mean over examples; 0 where there is none."""
  if not len(labels):
    return 0.0
  scores = scores - scores.real.max(axis=1, keepdims=True)
  chosen = scores[np.arange(len(labels)), labels]
  return np.mean(np.log(np.exp(scores).sum(axis=1)) - chosen)


def loss(weights, data):
  return cross_entropy(logits(weights, data[0]), data[1])


def loss_gradient(weights, data):
  """∇L, by hand and not by `derivative`, so that MAML can step along it."""
  x, labels = data
  hidden, layers = _hidden_layers(weights, x)
  scores = hidden @ weights[-2] + weights[-1]
  powers = np.exp(scores - scores.real.max(axis=1, keepdims=True))
  slope = powers / powers.sum(axis=1, keepdims=True)
  slope[np.arange(len(labels)), labels] -= 1
  slope = slope / len(labels)
  gradient = [hidden.T @ slope, slope.sum(axis=0)]
  back = slope @ weights[-2].T
  for kernel, x, output in reversed(layers):
    if kernel.ndim == 4:
      n, rows, columns, depth = output.shape
      back = back.reshape(n, rows // 2, columns // 2, depth) / 4
      back = back.repeat(2, axis=1).repeat(2, axis=2)
    back = (back * (1 - output**2)).reshape(-1, kernel.shape[-1])
    slope = x.reshape(len(back), -1).T @ back
    gradient = [slope.reshape(kernel.shape), back.sum(axis=0), *gradient]
    if kernel.ndim == 2:
      back = back @ kernel.T
  return gradient


def maml_adapted(weights, support, num_steps, rate, weight_decay):
  for _ in range(num_steps):
    gradient = loss_gradient(weights, support)
    weights = [
      w - rate * (g + weight_decay * w)
      for w, g in zip(weights, gradient, strict=True)
    ]
  return weights


def maml_loss(weights, support, query, num_steps, rate, weight_decay):
  adapted = maml_adapted(weights, support, num_steps, rate, weight_decay)
  return loss(adapted, query)


def proto_scores(weights, support, x):
  """Minus the squared distances to the prototypes; very far where none is."""
  hidden = feature(weights, x)
  scores = np.full((len(x), len(weights[-1])), -1e30, hidden.dtype)
  for c in set(support[1].tolist()):
    center = feature(weights, support[0][support[1] == c]).mean(axis=0)
    scores[:, c] = -np.sum((hidden - center) ** 2, axis=1)
  return scores


def proto_counted(support, query):
  """The query's examples whose class the support has."""
  known = np.isin(query[1], support[1])
  return query[0][known], query[1][known]


def proto_loss(weights, support, query):
  x, labels = proto_counted(support, query)
  if not len(labels):
    return 0.0 * weights[0].flat[0]
  classes = sorted(set(support[1].tolist()))
  scores = proto_scores(weights, support, x)[:, classes]
  return cross_entropy(scores, np.searchsorted(classes, labels))


def squared_gradient(weights, data):
  """The gradient of the mean of (x w - y)², for one layer without a bias."""
  (w,), (x, y) = weights, data
  return [2 * x.T @ (x @ w - y) / len(x)]


def clip(gradient, max_norm):
  """Returns g · min(1, max_norm / ‖g‖) and ‖g‖."""
  norm = np.sqrt(sum(np.sum(g**2) for g in gradient))
  scale = min(1, max_norm / norm) if norm else 1
  return [g * scale for g in gradient], norm


def mean(structures):
  return [np.mean(parts, axis=0) for parts in zip(*structures, strict=True)]


class PlainLoop:
  """All rounds of a method, with the states of all clients at hand.

  Attributes:
    gradient: ∇f_i, a function of the weights and a step's batches.
    rate: β_t, a function of the number of rounds done.
    selected: The model *selected*, after the last round.
    kept: What each client keeps, λ_i or c_i.
    newest: Each client's newest model.
    mean_kept: The mean of what clients kept before the round.
    steps: For each step of the last round, its weights and ‖g‖ before clipping.
  """

  def __init__(
    self,
    weights,
    gradient,
    *,
    rate=lambda t: 0.1,
    weight_decay=0.0,
    max_norm=math.inf,
    num_clients=5,
    batches_per_step=1,
  ):
    self.selected = [np.asarray(w, np.float64) for w in weights]
    self.gradient, self.rate, self.weight_decay = gradient, rate, weight_decay
    self.max_norm, self.batches_per_step = max_norm, batches_per_step
    self.kept = [[np.zeros_like(w) for w in self.selected]] * num_clients
    self.newest = [self.selected] * num_clients
    self.round_num = 0
    self.begin_round()

  def begin_round(self):
    self.mean_kept, self.steps = mean(self.kept), []

  @property
  def all(self):
    """The model *all*."""
    return mean(self.newest)

  def start(self):
    """w^t."""
    return self.selected

  def term(self, i, w, start):
    """R_i(w)."""
    return [0.0] * len(w)

  def new_kept(self, i, update, num_steps):
    """What the client keeps after its round."""
    return self.kept[i]

  def client(self, i, start, batches):
    """The local steps of a client, which returns its w_i."""
    w, rate, size = start, self.rate(self.round_num), self.batches_per_step
    num_steps = len(batches) // size
    for k in range(num_steps):
      gradient = self.gradient(w, *batches[size * k : size * (k + 1)])
      term = self.term(i, w, start)
      gradient = [g + r for g, r in zip(gradient, term, strict=True)]
      clipped, norm = clip(gradient, self.max_norm)
      self.steps.append((w, norm))
      w = [
        u - rate * (g + self.weight_decay * u)
        for u, g in zip(w, clipped, strict=True)
      ]
    update = [u - s for u, s in zip(w, start, strict=True)]
    self.kept[i] = self.new_kept(i, update, num_steps)
    self.newest[i] = w
    return w

  def round(self, participants):
    """A round of participants: the batches of each, by its number."""
    self.begin_round()
    start = self.start()
    self.selected = mean(
      [self.client(i, start, batches) for i, batches in participants.items()]
    )
    self.round_num += 1


class DynLoop(PlainLoop):
  def __init__(self, *args, alpha, **options):
    super().__init__(*args, **options)
    self.alpha = alpha

  def start(self):
    pairs = zip(self.selected, self.mean_kept, strict=True)
    return [w - h / self.alpha for w, h in pairs]

  def term(self, i, w, start):
    return [
      self.alpha * (u - s) - lam
      for u, s, lam in zip(w, start, self.kept[i], strict=True)
    ]

  def new_kept(self, i, update, num_steps):
    pairs = zip(self.kept[i], update, strict=True)
    return [lam - self.alpha * u for lam, u in pairs]


class ScafLoop(PlainLoop):
  def term(self, i, w, start):
    pairs = zip(self.mean_kept, self.kept[i], strict=True)
    return [c - c_i for c, c_i in pairs]

  def new_kept(self, i, update, num_steps):
    scale = num_steps * self.rate(self.round_num)
    return [
      c_i - c - u / scale
      for c_i, c, u in zip(self.kept[i], self.mean_kept, update, strict=True)
    ]


class ProxLoop(PlainLoop):
  def __init__(self, *args, mu, **options):
    super().__init__(*args, **options)
    self.mu = mu

  def term(self, i, w, start):
    return [self.mu * (u - s) for u, s in zip(w, start, strict=True)]


def loop_of(correction, *args, **options):
  """The loop of one of the corrections of the package."""
  if isinstance(correction, corrections.Prox):
    return ProxLoop(*args, mu=correction.mu, **options)
  if isinstance(correction, corrections.Dyn):
    return DynLoop(*args, alpha=correction.alpha, **options)
  is_scaf = isinstance(correction, corrections.Scaf)
  return (ScafLoop if is_scaf else PlainLoop)(*args, **options)
