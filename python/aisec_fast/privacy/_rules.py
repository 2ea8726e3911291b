"""Which rule a layer has, and what stands in the way of one."""

from __future__ import annotations

from collections.abc import Mapping

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
    PReLUGradients,
    RMSNormGradients,
)
from ._own_layers import OwnLayerGradients, borrows

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
    """The rule for ``layer`` by its type, or None."""
    for rule in RULES:
        base = rule.layer_type
        if isinstance(layer, base):
            same = all(getattr(type(layer), f, None) is getattr(base, f, None) for f in ("forward", "_conv_forward"))
            if same and not {"forward", "_conv_forward"} & vars(layer).keys():
                return rule
    is_bilinear = isinstance(layer, nn.Bilinear) and type(layer).forward is nn.Bilinear.forward
    return OwnLayerGradients if is_bilinear else None


def rules_of_its_own(
    layer: nn.Module, trained: Mapping[str, nn.Parameter]
) -> Mapping[str, type[LayerGradients] | None]:
    """Rules by name for the parameters of a ``layer`` without a rule by its type, and of modules in it if it is differentiated
    as a whole; None for a parameter that a layer in it has a rule for.

    Copies of a parameter are tried where it has three dimensions and one of a row or rows of one value: where a parameter
    [1, width] or [1] stands beside samples its copies may stand beside something else.
    """
    if (type(layer).forward.__module__ or "").partition(".")[0] == "torch":  # of code made by torch.fx: None
        return {}
    own = [p for p in layer._parameters.values() if p is not None]
    if not own:
        return {}
    inside = {name: p for name, p in layer.named_parameters(remove_duplicate=False) if p.requires_grad}
    if len(inside) == len(trained):
        return dict.fromkeys(trained, OwnLayerGradients)
    if not all(map(_is_row, own)) and borrows(layer):
        return dict.fromkeys(inside, OwnLayerGradients)
    elsewhere = {id(p) for name, p in inside.items() if name not in trained}

    def rule_of(parameter: nn.Parameter) -> type[LayerGradients] | None:
        if id(parameter) in elsewhere:
            return None
        return BroadcastGradients if _is_row(parameter) or _is_column(parameter) else OwnLayerGradients

    return {name: rule_of(parameter) for name, parameter in trained.items()}


def _is_row(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 3 and parameter.shape[0] == 1


def _is_column(parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 3 and parameter.shape[1:].numel() == 1


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
