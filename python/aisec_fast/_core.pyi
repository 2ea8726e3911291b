from collections.abc import Sequence
from typing import Any

version: str

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str, sha: bool = True) -> None: ...
def share_openmp(path: str) -> bool: ...
def shares_openmp() -> bool: ...
def set_num_threads(threads: int) -> None: ...
def add_gaussian(x: Any, out: Any, sigma: float, granularity: float, key: bytes, generator: str = "chacha") -> None: ...
def add_laplace(x: Any, out: Any, scale: float, granularity: float, key: bytes, generator: str = "chacha") -> None: ...
def add_float_gaussian(x: Any, out: Any, sigma: float, key: bytes, generator: str = "chacha") -> None: ...
def add_float_laplace(x: Any, out: Any, scale: float, key: bytes, generator: str = "chacha") -> None: ...
def random_words(out: Any, key: bytes, domain: int, generator: str = "chacha") -> None: ...
def has_aes() -> bool: ...
def first_unfit(x: Any, granularity: float) -> int: ...
def norms(grads: list[Any], norms: Any) -> None: ...
def weighted_sum(grads: list[Any], weights: Any, outs: list[Any]) -> None: ...
def clip_and_sum(grads: list[Any], max_norm: float, outs: list[Any], norms: Any) -> None: ...
def lattice_sum(
    grads: list[Any], max_norm: float, granularity: float, limit: int, outs: list[Any], norms: Any
) -> None: ...
def blake3_update(state: Any, data: Any, max_threads: int) -> None: ...
def blake3_output(state: Any, out: Any, seek: int) -> None: ...
def sha256_update(state: Any, data: Any) -> None: ...
def sha256_output(state: Any, out: Any) -> None: ...
def sha256_streams(states: Any, data: Any) -> None: ...
def linf_step(
    adv: Any, x: Any, gradient: Any, step_size: float, eps: float, low: float, high: float, out: Any
) -> None: ...
def l2_step(
    adv: Any, x: Any, gradient: Any, step_size: float, eps: float, low: float, high: float, out: Any
) -> None: ...
def signed_by_table(
    out: Any, key: bytes, thresholds: Any, guide: Any, generator: str = "chacha"
) -> list[tuple[int, ...]]: ...
def signed_by_quantile(
    out: Any,
    key: bytes,
    rows: Any,
    scale: float,
    offset: float,
    limit: float,
    wide: Any,
    exact_scale: float,
    slope: float,
    generator: str = "chacha",
) -> list[tuple[int, ...]]: ...
def decisions(out: Any, key: bytes, threshold: int, generator: str = "chacha") -> list[tuple[int, ...]]: ...
def bounded_integers(
    out: Any, key: bytes, low: int, bound: int, growth: int, wide: bool, generator: str = "chacha"
) -> list[tuple[int, ...]]: ...
def shuffle(places: Any, first: int, last: int) -> None: ...
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
