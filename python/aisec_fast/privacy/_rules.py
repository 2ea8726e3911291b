"""Which rule a layer has, and what stands in the way of one."""

from __future__ import annotations

from torch import nn

from ._layers import (
    Conv1dGradients,
    Conv2dGradients,
    Conv3dGradients,
    EmbeddingGradients,
    GroupNormGradients,
    LayerGradients,
    LayerNormGradients,
    LinearGradients,
)
from ._other_layers import (
    BroadcastGradients,
    ConvTranspose1dGradients,
    ConvTranspose2dGradients,
    ConvTranspose3dGradients,
    InstanceNorm1dGradients,
    InstanceNorm2dGradients,
    InstanceNorm3dGradients,
    OwnLayerGradients,
    PReLUGradients,
    RMSNormGradients,
)

RULES: tuple[type[LayerGradients], ...] = (
    LinearGradients,
    Conv1dGradients,
    Conv2dGradients,
    Conv3dGradients,
    ConvTranspose1dGradients,
    ConvTranspose2dGradients,
    ConvTranspose3dGradients,
    EmbeddingGradients,
    LayerNormGradients,
    GroupNormGradients,
    InstanceNorm1dGradients,
    InstanceNorm2dGradients,
    InstanceNorm3dGradients,
    RMSNormGradients,
    PReLUGradients,
)
# Rules that can use what the layer's forward has computed.
STATISTICAL = (LayerNormGradients, GroupNormGradients)


def find_rule(layer: nn.Module) -> type[LayerGradients] | None:
    """The rule for ``layer``, or None."""
    for rule in RULES:
        base = rule.layer_type
        if isinstance(layer, base):
            same = all(getattr(type(layer), f, None) is getattr(base, f, None) for f in ("forward", "_conv_forward"))
            if same and not {"forward", "_conv_forward"} & vars(layer).keys():
                return rule
    return OwnLayerGradients if _is_own(layer) else None


def _is_own(layer: nn.Module) -> bool:
    """Whether ``layer`` has a forward of the user's, and all its trainable parameters itself."""
    inside = any(p.requires_grad for child in layer.children() for p in child.parameters())
    return _has_own_forward(layer) and not inside


def _has_own_forward(layer: nn.Module) -> bool:
    return type(layer).forward.__module__.partition(".")[0] != "torch"


def rule_for_parameter(layer: nn.Module, parameter: nn.Parameter) -> type[LayerGradients] | None:
    """The rule for a parameter of a ``layer`` that has none itself. Fewer dimensions than three are not tried: where a
    parameter [1, width] or [1] stands beside samples its copies may stand beside something else."""
    fits = parameter.dim() >= 3 and parameter.shape[0] == 1 and _has_own_forward(layer)
    return BroadcastGradients if fits else None


def refusal(layer: nn.Module) -> str | None:
    """The reason why a layer of a covered type cannot be covered as it is set up, or None."""
    if not isinstance(layer, nn.Embedding):
        return None
    if layer.max_norm is not None:
        return "max_norm rescales the rows of a batch's tokens in place, where no noise is added; use max_norm=None"
    if layer.scale_grad_by_freq:
        return "scale_grad_by_freq makes a sample's gradient depend on the others; use scale_grad_by_freq=False"
    if layer.sparse:
        return "sparse=True shows which tokens occurred, and noisy gradients are dense; use sparse=False"
    return None


def supported_names() -> str:
    """The layer types that have a rule, for messages."""
    return ", ".join(rule.layer_type.__name__ for rule in RULES)
