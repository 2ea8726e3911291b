"""DP-SGD for torch: ``PrivacyEngine`` makes a user's plain training loop private. Needs torch and dp-accounting.

    model, optimizer, loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0)

_layers        how each layer type gives per-sample gradient norms and clipped sums
_other_layers  the same for rarer types
_own_layers    the same for layers and modules of the user's own
_rules         which of these a layer has
_together      layers of the same shapes at once, on a GPU
_clip          the weight of each sample, from norms that are upper bounds
_charges       what rounding costs, and the noise that pays for it (docs/privacy.md)
_precision     no TF32 or bfloat16 in the engine's own products
_coverage      which layers of a model are covered, and why the rest is refused; ``ModuleValidator``
_attention     ``MultiheadAttention`` of linear layers, in place of torch's
_recurrent     ``RNN``, ``LSTM`` and ``GRU`` of linear layers, in place of torch's
_cells         ``RNNCell``, ``LSTMCell``, ``GRUCell`` and ``EmbeddingBag`` likewise
_stand_in      what these have in common: torch's names in state dicts
_recording     hooks that record and measure each covered layer during the one backward pass
_attaching     puts them on a model
_expanding     embeddings of positions and parameters beside samples get a row for each
_probe         do samples mix
_sampling      Poisson sampling of batches, their parts, and the count of what the loader handed out
_batch_memory  ``BatchMemoryManager``
_checkpoints   what is loaded into an optimizer
_written       gradients in ``.grad`` that the engine did not make
_step          clip, sum, book, add noise, hand ``.grad`` to the user's optimizer
_engine        the public class that puts them together
schedulers     noise and clipping norm that change with the epochs
"""

from ._attention import MultiheadAttention
from ._batch_memory import BatchMemoryManager
from ._cells import EmbeddingBag, GRUCell, LSTMCell, RNNCell
from ._coverage import ModuleValidator
from ._engine import PrivacyEngine
from ._recurrent import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BatchMemoryManager",
    "EmbeddingBag",
    "GRUCell",
    "LSTMCell",
    "ModuleValidator",
    "MultiheadAttention",
    "PrivacyEngine",
    "RNNCell",
]
