from collections.abc import Sequence
from typing import Any

version: str

def device_count() -> int: ...
def device_names() -> list[str]: ...
def runtime_version() -> int: ...
def driver_version() -> int: ...
def add_gaussian(x: Any, out: Any, sigma: float, granularity: float, key: bytes, generator: str = "chacha") -> None: ...
def add_laplace(x: Any, out: Any, scale: float, granularity: float, key: bytes, generator: str = "chacha") -> None: ...
def add_float_gaussian(x: Any, out: Any, sigma: float, key: bytes, generator: str = "chacha") -> None: ...
def add_float_laplace(x: Any, out: Any, scale: float, key: bytes, generator: str = "chacha") -> None: ...
def random_words(out: Any, key: bytes, domain: int, generator: str = "chacha") -> None: ...
def first_unfit(x: Any, granularity: float) -> int: ...
def norms(grads: list[Any], norms: Any) -> None: ...
def weighted_sum(grads: list[Any], weights: Any, outs: list[Any]) -> None: ...
def clip_and_sum(grads: list[Any], max_norm: float, outs: list[Any], norms: Any) -> None: ...
def lattice_sum(
    grads: list[Any], max_norm: float, granularity: float, limit: int, outs: list[Any], norms: Any
) -> None: ...
def blake3_update(state: Any, data: Any, max_threads: int) -> None: ...
def blake3_output(state: Any, out: Any, seek: int) -> None: ...
def linf_step(
    adv: Any, x: Any, gradient: Any, step_size: float, eps: float, low: float, high: float, out: Any
) -> None: ...
def l2_step(
    adv: Any, x: Any, gradient: Any, step_size: float, eps: float, low: float, high: float, out: Any
) -> None: ...
def l1_step(
    adv: Any, x: Any, gradient: Any, step_size: float, eps: float, low: float, high: float, out: Any
) -> None: ...
def l0_step(
    adv: Any, x: Any, gradient: Any, step_size: float, eps: float, low: float, high: float, out: Any
) -> None: ...
def noisy_mean(
    sums: list[Any], divisor: float, sigma: float, granularity: float, keys: list[bytes], generator: str
) -> None: ...
def sgd_step(
    sums: list[Any],
    params: list[Any],
    buffers: list[Any],
    divisor: float,
    sigma: float,
    granularity: float,
    keys: list[bytes],
    generator: str,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None: ...
def adam_step(
    sums: list[Any],
    params: list[Any],
    exp_avgs: list[Any],
    exp_avg_sqs: list[Any],
    max_exp_avg_sqs: list[Any],
    divisor: float,
    sigma: float,
    granularity: float,
    keys: list[bytes],
    generator: str,
    beta1: float,
    beta2: float,
    step_size: float,
    root_correction: float,
    eps: float,
    weight_decay: float,
    decay: float,
    maximize: bool,
) -> None: ...
def gram_squares(inputs: Any, outputs: Any, squares: Any, bounds: Any) -> None: ...
def conv_gram_squares(
    activation: Any,
    gradient: Any,
    kernel: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    squares: Any,
    bounds: Any,
) -> None: ...
def conv_rows(
    activation: Any,
    gradient: Any,
    kernel: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    rows: Any,
    squares: Any,
    bounds: Any,
) -> None: ...
