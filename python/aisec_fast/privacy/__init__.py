"""DP-SGD for torch: ``PrivacyEngine`` makes a user's plain training loop private. Needs torch and dp-accounting.

    model, optimizer, loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0)

layers     how each layer type gives per-sample gradient norms and clipped sums
coverage   which layers of a model are covered, and why the rest is refused; ``ModuleValidator``
recording  hooks that record (activation, output gradient) of each covered layer during the one backward pass
sampling   Poisson sampling of batches, and the count of what the loader handed out
step       clip, sum, book, add noise, hand ``.grad`` to the user's optimizer
engine     the public class that puts them together
"""

from .coverage import ModuleValidator
from .engine import PrivacyEngine

__all__ = ["ModuleValidator", "PrivacyEngine"]
