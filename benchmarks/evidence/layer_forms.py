"""What the forms of layers in private steps (privacy/_forms.py) take beside torch's own operations.

    python benchmarks/evidence/layer_forms.py      a minute and a half

Forward and the gradient of the input, by themselves, each in turn with torch's in one process; a ratio is that of the medians.
Winograd's products include spreading the weights, which is done anew each time. "-": the layer keeps torch's own operation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from torch import Tensor, nn

import aisec_fast
from aisec_fast import _backends, _winograd
from aisec_fast.privacy import _forms

LAYERS: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("CNN, first", lambda: nn.Conv2d(1, 16, 8, 2, padding=3), (256, 1, 28, 28)),
    ("CNN, second", lambda: nn.Conv2d(16, 32, 4, 2), (256, 16, 13, 13)),
    ("ResNet, first", lambda: nn.Conv2d(3, 32, 3, padding=1), (64, 3, 32, 32)),
    ("ResNet, 32", lambda: nn.Conv2d(32, 32, 3, padding=1), (64, 32, 32, 32)),
    ("ResNet, 64", lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 64, 16, 16)),
    ("ResNet, 128", lambda: nn.Conv2d(128, 128, 3, padding=1), (64, 128, 8, 8)),
    ("ResNet, 32 to 64", lambda: nn.Conv2d(32, 64, 3, 2, padding=1), (64, 32, 32, 32)),
    ("ResNet, 64 to 128", lambda: nn.Conv2d(64, 128, 3, 2, padding=1), (64, 64, 16, 16)),
    ("ResNet, shortcut of 32", lambda: nn.Conv2d(32, 64, 1, 2), (64, 32, 32, 32)),
    ("ResNet, shortcut of 64", lambda: nn.Conv2d(64, 128, 1, 2), (64, 64, 16, 16)),
    ("MLP, 784 to 1024", lambda: nn.Linear(784, 1024), (256, 784)),
    ("MLP, 1024 to 1024", lambda: nn.Linear(1024, 1024), (256, 1024)),
    ("transformer, 256 to 1024", lambda: nn.Linear(256, 1024), (32, 64, 256)),
    ("transformer, 256 to 5000", lambda: nn.Linear(256, 5000), (32, 64, 256)),
)
ROUNDS = 21


def torchs_gradient(layer: Any, gradient: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return gradient.flatten(0, -2) @ layer.weight
    geometry = layer.stride, layer.padding, layer.dilation
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, layer.weight, None, *geometry, False, (0, 0), 1, (True, False, False)
    )[0]
    return found


def ratio(own: Callable[[], Any], torchs: Callable[[], Any]) -> dict[str, float]:
    took: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for times, call in zip(took, (own, torchs), strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    mine, theirs = (statistics.median(times) * 1e3 for times in took)
    return {"ms": round(mine, 3), "torch_ms": round(theirs, 3), "ratio": round(mine / theirs, 3)}


def takes(form: Any, method: str, shape: torch.Size) -> bool:
    if isinstance(form, _forms.LinearForm):
        return True
    winograd = form.is_winograd and _winograd.fits(shape[2:])
    return bool(winograd or getattr(form, f"{method}_by_taps"))


def main() -> None:
    start, found = time.perf_counter(), {}
    _backends.keep_freed_memory()  # as a private step does
    for threads in (2, 1):
        torch.set_num_threads(threads)
        aisec_fast.set_num_threads(threads)
        _backends.share_torch_threads()
        for name, make, shape in LAYERS:
            layer: Any = make().requires_grad_(False)
            form, x = _forms.form_of(layer), torch.randn(shape)
            result = layer(x)
            gradient = torch.randn_like(result)
            own: dict[str, Any] = {}
            if form is not None and takes(form, "forward", x.shape):
                own["forward"] = ratio(lambda: form.forward(x, layer.weight, layer.bias), lambda: layer(x))  # noqa: B023
            if form is not None and takes(form, "backward", x.shape):
                own["backward"] = ratio(
                    lambda: form.backward(gradient, layer.weight, x.shape),  # noqa: B023
                    lambda: torchs_gradient(layer, gradient, x),  # noqa: B023
                )
            found[f"{name}, {threads} threads"] = own
            shown = {way: f"{one['ratio']:.2f} of {one['torch_ms']:.2f} ms" for way, one in own.items()}
            print(f"{name}, {threads} threads:", *(f"{way} {shown.get(way, '-')}" for way in ("forward", "backward")))
    print(record.write("layer-forms", {"layers": found}, time.perf_counter() - start))


if __name__ == "__main__":
    main()
