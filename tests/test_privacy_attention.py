"""``privacy.MultiheadAttention`` against torch's own, inside torch's transformers too, and against a loop over single samples.

In float64 results differ by the rounding of sums of a few dozen products of values below 10: far below 1e-12. In float32 the
same sums are within 1e-5.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import UnsupportedModuleError, noise
from aisec_fast.privacy import ModuleValidator, MultiheadAttention, PrivacyEngine
from aisec_fast.privacy._step import measured
from tests.test_privacy_layers import check, data, square_loss

EXACT = 1e-12


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch warns of masks of two types, of nested tensors and of fast paths that are not taken."""
    with warnings.catch_warnings():
        for message in (
            "Support for mismatched",
            "enable_nested_tensor",
            "The PyTorch API of nested tensors",
            "LSTM with projections",
            "a step used",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def same(found: Any, expected: Any, tolerance: float = EXACT) -> None:
    """Equal tensors, or None, in equal places."""
    assert type(found) is type(expected) or isinstance(found, Tensor)
    if isinstance(found, (tuple, list)):
        for one, other in zip(found, expected, strict=True):
            same(one, other, tolerance)
    elif found is not None:
        torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance, equal_nan=True)


def both(plain: nn.MultiheadAttention) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """It, with biases that are not zero, and what ``fix`` makes of it."""
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    fixed = ModuleValidator.fix(plain)
    assert isinstance(fixed, MultiheadAttention)
    return plain, fixed


# ------------------------------------------------------------------------------------------------ the same numbers


@given(seed=st.integers(0, 999), choice=st.data())
@settings(max_examples=80)
def test_is_torchs(seed: int, choice: st.DataObject) -> None:
    """Values, weights and all gradients, whatever the options."""

    def flag() -> bool:
        return choice.draw(st.booleans())

    torch.manual_seed(seed)
    batched, batch_first, other_sizes, dtype = flag(), flag(), flag(), torch.float64
    sizes = {"kdim": 5, "vdim": 7} if other_sizes else {}
    plain, ours = both(
        nn.MultiheadAttention(
            6, choice.draw(st.sampled_from([1, 2, 3])), dropout=choice.draw(st.sampled_from([0.0, 0.4])), bias=flag(),
            add_bias_kv=flag(), add_zero_attn=flag(), batch_first=batch_first, dtype=dtype, **sizes,
        )
    )  # fmt: skip
    batch, length, heads = 3, 4, plain.num_heads
    way = "other" if other_sizes else choice.draw(st.sampled_from(["self", "cross", "keys are queries", "other"]))
    width = length if way in ("self", "keys are queries") else 5

    def sequence(steps: int, size: int) -> Tensor:
        found = torch.randn(batch, steps, size, dtype=dtype)
        found = found[0] if not batched else found if batch_first else found.transpose(0, 1)
        return found.requires_grad_()

    query = sequence(length, 6)
    key = query if way in ("self", "keys are queries") else sequence(width, plain.kdim)
    value = query if way == "self" else key if way == "cross" else sequence(width, plain.vdim)

    def mask(*shape: int) -> Tensor:
        """None of whose rows hides all."""
        hidden = torch.rand(shape) < 0.4
        hidden[..., 0] = False
        return hidden if flag() else torch.randn(shape, dtype=dtype)

    options: dict[str, Any] = {"need_weights": flag(), "average_attn_weights": flag()}
    if flag():
        options["key_padding_mask"] = mask(batch, width) if batched else mask(width)
    if way == "self" and flag():
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        options |= {"attn_mask": hidden, "is_causal": flag()}
    elif flag():
        several = (batch * heads if batched else heads,) if flag() else ()
        options["attn_mask"] = mask(*several, length, width)
    is_training = flag()
    if not is_training and flag():
        plain.requires_grad_(False)
        ours.requires_grad_(False)
        query, key, value = (one.detach() for one in (query, key, value))
        key, value = (query if way in ("self", "keys are queries") else key), (query if way == "self" else value)
    if way == "cross":
        value = key
    found = []
    for module in (plain, ours):
        module.train(is_training)
        torch.manual_seed(seed)  # of dropout
        output, weights = module(query, key, value, **options)
        results = [output, weights]
        if output.requires_grad:
            torch.manual_seed(seed)
            loss = (output * torch.randn(output.shape, dtype=dtype)).sum() + (
                0 if weights is None else weights.square().sum()
            )
            wanted = list({id(one): one for one in (query, key, value)}.values())
            module.zero_grad()
            loss.backward(inputs=[*wanted, *module.parameters()])
            results += [one.grad for one in wanted]
            results.append(_gradients(module))
            for one in wanted:
                one.grad = None
        found.append(results)
    same(found[1][:-1], found[0][:-1])
    if isinstance(found[0][-1], dict):
        assert list(found[1][-1]) == list(found[0][-1])
        same(list(found[1][-1].values()), list(found[0][-1].values()))


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    """By the names of a state dict."""
    shadow = copy.deepcopy(module)
    with torch.no_grad():
        for ours, parameter in zip(shadow.parameters(), module.parameters(), strict=True):
            ours.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return dict(shadow.state_dict())


def test_float32() -> None:
    torch.manual_seed(0)
    plain, ours = both(nn.MultiheadAttention(32, 4))
    x, y = torch.randn(20, 5, 32), torch.randn(9, 5, 32)
    for need_weights in (True, False):
        same(ours(x, x, x, need_weights=need_weights), plain(x, x, x, need_weights=need_weights), 1e-5)
        same(ours(x, y, y, need_weights=need_weights), plain(x, y, y, need_weights=need_weights), 1e-5)


def test_what_torch_refuses_is_refused() -> None:
    module, x = MultiheadAttention(6, 2, batch_first=True), torch.randn(3, 4, 6)
    with pytest.raises(RuntimeError, match="is_causal"):
        module(x, x, x, is_causal=True)
    with pytest.raises(RuntimeError, match="2D attn_mask"):
        module(x, x, x, attn_mask=torch.zeros(4, 5))
    with pytest.raises(RuntimeError, match="3D attn_mask"):
        module(x, x, x, attn_mask=torch.zeros(3, 4, 4))
    with pytest.raises(AssertionError, match="key_padding_mask"):
        module(x, x, x, key_padding_mask=torch.zeros(3, 5))
    with pytest.raises(AssertionError, match="key"):
        module(x, x, x[:, 1:])
    with pytest.raises(AssertionError, match="embedding dimension"):
        module(x[..., 1:], x, x)
    with pytest.raises(AssertionError, match="divisible"):
        MultiheadAttention(6, 4)


# ------------------------------------------------------------------------------------------------ in torch's transformers

TRANSFORMER = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "dropout": 0.0}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("is_private", [True, False])
def test_encoders(batch_first: bool, norm_first: bool, is_private: bool) -> None:
    """Also on the fast path of a layer, and where the encoder makes its input nested."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(**TRANSFORMER, batch_first=batch_first, norm_first=norm_first)
    plain = nn.TransformerEncoder(layer, 2)
    ours = ModuleValidator.fix(plain)
    if is_private:
        private(ours, batch_first)
    x = torch.randn(5, 6, 8) if batch_first else torch.randn(6, 5, 8)
    padding = torch.arange(6) >= torch.tensor([6, 3, 2, 5, 1])[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    for is_training in (True, False):
        plain.train(is_training)
        ours.train(is_training)
        for options in ({}, {"src_key_padding_mask": padding}, {"mask": causal, "is_causal": True}):
            for with_grad in (True, False):
                with torch.set_grad_enabled(with_grad):
                    same(ours(x, **options), plain(x, **options), 1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_whole_transformer(batch_first: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Transformer(
        **TRANSFORMER, num_encoder_layers=2, num_decoder_layers=2, batch_first=batch_first, dtype=torch.float64
    )
    ours = ModuleValidator.fix(plain)
    assert ModuleValidator.is_valid(ours)
    assert list(ours.state_dict()) == list(plain.state_dict())
    x, y = torch.randn(5, 6, 8, dtype=torch.float64), torch.randn(5, 4, 8, dtype=torch.float64)
    x, y = (x, y) if batch_first else (x.transpose(0, 1), y.transpose(0, 1))
    causal = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    for is_training in (True, False):
        plain.train(is_training)
        ours.train(is_training)
        for with_grad in (True, False):
            with torch.set_grad_enabled(with_grad):
                same(ours(x, y, tgt_mask=causal), plain(x, y, tgt_mask=causal))


def test_nested_tensors_with_masks_are_refused() -> None:
    module = MultiheadAttention(6, 2, batch_first=True).eval()
    x = torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(2, 6)])
    with torch.no_grad(), pytest.raises(AssertionError, match="nested"):
        module(x, x, x, key_padding_mask=torch.zeros(2, 3, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ private gradients


class Attention(nn.Module):
    """Reads its input with another sequence made of it, or with itself alone."""

    def __init__(self, way: str = "self", need_weights: bool = False, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.way, self.need_weights = way, need_weights
        self.batch_first = batch_first  # of the model
        self.attention = nn.MultiheadAttention(6, 2, **options)
        self.before = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        turn = self.attention.batch_first != self.batch_first
        x = self.before(x)
        x = x.transpose(0, 1) if turn else x
        steps = 1 if self.attention.batch_first else 0
        key = x if self.way == "self" else x.narrow(steps, 0, 3).tanh()
        value = key.square() if self.way == "all differ" else key
        output: Tensor = self.attention(x, key, value, need_weights=self.need_weights)[0]
        return output.transpose(0, 1) if turn else output


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("way", ["self", "cross", "all differ"])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 6, "vdim": 6}]
)
def test_private_gradients(way: str, need_weights: bool, options: dict[str, Any]) -> None:
    x, y = data((9, 5, 6))
    check(ModuleValidator.fix(Attention(way, need_weights, **options, batch_first=True)).double(), x, y, square_loss)


@pytest.mark.parametrize("length", [5, 9])
@pytest.mark.parametrize("of_model", [True, False])
@pytest.mark.parametrize("of_layer", [True, False])
def test_where_the_samples_are(of_model: bool, of_layer: bool, length: int) -> None:
    """In a square of samples and steps an exchange of the two would not be noticed."""
    _, y = data((9,))
    x = torch.randn(9, length, 6, dtype=torch.float64) * 2
    model = Attention("cross", batch_first=of_model)
    model.attention = nn.MultiheadAttention(6, 2, batch_first=of_layer)

    def loss_of(output: Tensor, targets: Tensor) -> Tensor:
        return square_loss(output if of_model else output.transpose(0, 1), targets)

    fixed = ModuleValidator.fix(model).double()
    check(fixed, x if of_model else x.transpose(0, 1), y, loss_of, batch_first=of_model)


@pytest.mark.parametrize("batch_first", [True, False])
def test_private_transformer(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=batch_first, dtype=torch.float64)
    model = ModuleValidator.fix(nn.TransformerEncoder(layer, 2))
    x, y = data((9, 5, 6))

    def loss_of(output: Tensor, targets: Tensor) -> Tensor:
        return square_loss(output if batch_first else output.transpose(0, 1), targets)

    check(model, x if batch_first else x.transpose(0, 1).contiguous(), y, loss_of, batch_first=batch_first)


def test_an_empty_batch() -> None:
    model = ModuleValidator.fix(Attention("cross", True, add_bias_kv=True, batch_first=True))
    optimizer = private(model)
    model(torch.zeros(0, 5, 6)).sum().backward()
    optimizer.step()
    assert all(not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("way", ["self", "cross"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_are_those_of_the_gradients(way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = ModuleValidator.fix(Attention(way, add_bias_kv=True)).to(dtype)
    compare_norms(model, torch.randn(4, 7, 6, dtype=dtype), dtype)


def compare_norms(model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """Norms never below the true ones, and hardly above: of every parameter of every sample."""
    exact = copy.deepcopy(model).double()
    truth: dict[str, list[float]] = {}
    for i in range(len(x)):
        exact.zero_grad()
        exact(x[i : i + 1].double()).square().sum().backward()
        for name, parameter in exact.named_parameters():
            truth.setdefault(name, []).append(float(parameter.grad.norm()))
    optimizer = private(model)
    model(x).square().sum().backward()
    uses = next(iter(optimizer._optimizer_step_pre_hooks.values())).recorder.take()
    assert len(uses) == len({id(use.layer) for use in uses}), "a layer was used several times"
    loss = 1e-9 if dtype == torch.float64 else 2e-3  # float32: of the forward pass, and what bounds pay for rounding
    found = 0
    for name, parameter in model.named_parameters():
        of_parameter = [(key, use) for use in uses for key, p in use.layer.parameters.items() if p is parameter]
        norms = measured(of_parameter, len(x), parameter).squares.sqrt()
        ratio = norms / torch.tensor(truth[name], dtype=torch.float64)
        assert 1 - (EXACT if dtype == torch.float64 else 1e-4) <= float(ratio.min()), name
        assert float(ratio.max()) <= 1 + loss, name
        found += 1
    assert found == len(truth)


def private(model: nn.Module, batch_first: bool = True, **options: Any) -> Any:
    """An optimizer that is private and adds no noise."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(torch.arange(16)), batch_size=16),
            noise_multiplier=0.0, max_grad_norm=1.0, batch_first=batch_first, **options,
        )  # fmt: skip
    return optimizer


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.out(self.encoder(self.embedding(tokens)).mean(1))
        return result


def train_privately(model: nn.Module, steps: int = 40, rate: float = 0.01) -> None:
    """Whether 10 is among the tokens: learned by a private run, and afterwards by torch's own model too."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 10, (256, 8))
    tokens[::2, 3] = 10
    targets = (tokens == 10).any(1).long()
    plain, model = model, ModuleValidator.fix(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    engine = PrivacyEngine(accountant="rdp")
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(tokens, targets), batch_size=64),
        noise_multiplier=0.6, max_grad_norm=1.0, source=noise.SeededSource(1),
    )  # fmt: skip
    before = float(nn.functional.cross_entropy(model.eval()(tokens), targets).detach())
    model.train()
    taken = 0
    while taken < steps:
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            taken += 1
    assert engine.info()[0]["check_rows"] == "passed"
    assert 0 < engine.get_epsilon(1e-5) < 100
    after = float(nn.functional.cross_entropy(model.eval()(tokens), targets).detach())
    assert after < 0.5 * before
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        same(plain.eval()(tokens), model(tokens), 1e-4)


def test_a_classifier_learns() -> None:
    torch.manual_seed(0)
    train_privately(Classifier())


# ------------------------------------------------------------------------------------------------ what fix keeps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"kdim": 4},
        {"kdim": 4, "vdim": 5, "bias": False, "add_bias_kv": True},
    ],
)
@pytest.mark.parametrize("parent", [None, nn.TransformerDecoderLayer])
def test_state_dicts(options: dict[str, Any], parent: Any) -> None:
    """Torch's names, in torch's order, to and fro; also of the attention between decoder and encoder."""
    torch.manual_seed(0)
    plain: nn.Module = nn.MultiheadAttention(6, 2, **options)
    if parent is not None:
        decoder = parent(6, 2, 8)
        decoder.multihead_attn = plain
        plain = decoder
    fixed, other = ModuleValidator.fix(plain), ModuleValidator.fix(plain)
    state = {name: torch.randn_like(value) for name, value in plain.state_dict().items()}
    assert list(fixed.state_dict()) == list(state)
    fixed.load_state_dict(state)
    same(list(fixed.state_dict().values()), list(state.values()), 0.0)
    plain.load_state_dict(fixed.state_dict())
    same(list(plain.state_dict().values()), list(state.values()), 0.0)
    other.load_state_dict(state, assign=True)
    same(list(other.state_dict().values()), list(state.values()), 0.0)
    for name, value in state.items():
        if name.split(".")[-1].startswith(("in_proj", "k_proj", "bias_k")):
            module = fixed if parent is None else fixed.multihead_attn
            if parent is None or name.startswith("multihead_attn"):
                assert torch.equal(getattr(module, name.split(".")[-1]), value)
    missing = next(iter(state))
    del state[missing]
    with pytest.raises(RuntimeError, match=r'Missing key.*"(self_attn\.)?(in_proj_weight|q_proj_weight|bias_k)"'):
        fixed.load_state_dict(state)
    assert fixed.load_state_dict(state, strict=False).missing_keys == [missing]
    name = next(name for name in plain.state_dict() if "out_proj" not in name)
    with pytest.raises(RuntimeError, match="size mismatch"):
        fixed.load_state_dict({**plain.state_dict(), name: torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fixed.load_state_dict({**plain.state_dict(), "unknown": torch.zeros(1)})


def test_fix_leaves_the_original_as_it_is() -> None:
    plain = nn.MultiheadAttention(6, 2, dtype=torch.float64).eval()
    plain.in_proj_bias.requires_grad_(False)
    before = copy.deepcopy(plain.state_dict())
    fixed = ModuleValidator.fix(plain)
    assert type(plain) is nn.MultiheadAttention
    assert not fixed.training
    assert not fixed.out_proj.training
    assert fixed.in_proj_weight.dtype == torch.float64
    assert fixed.in_proj_weight.requires_grad
    assert not fixed.in_proj_bias.requires_grad
    with torch.no_grad():
        for parameter in fixed.parameters():
            parameter.zero_()
    same(list(plain.state_dict().values()), list(before.values()), 0.0)
    assert ModuleValidator.fix(nn.MultiheadAttention(6, 2, kdim=3, device="meta")).q_proj.weight.is_meta
    kept = ModuleValidator.fix(fixed)
    assert isinstance(kept, MultiheadAttention)
    assert ModuleValidator.is_valid(kept)
    narrow = nn.MultiheadAttention(6, 2, kdim=3, add_bias_kv=True)
    narrow.in_proj_bias.requires_grad_(False)
    narrow.bias_k.requires_grad_(False)
    frozen = {name for name, p in ModuleValidator.fix(narrow).named_parameters() if not p.requires_grad}
    assert frozen == {"q_proj.bias", "k_proj.bias", "v_proj.bias", "of_bias_k.weight"}


def test_one_layer_where_queries_are_keys() -> None:
    """And one for each where they are not, so that nobody computes what nobody needs."""
    fixed = ModuleValidator.fix(nn.TransformerDecoderLayer(6, 2, 8))
    assert [name for name, _ in fixed.self_attn.named_children()] == ["in_proj", "out_proj"]
    assert [name for name, _ in fixed.multihead_attn.named_children()] == ["q_proj", "k_proj", "v_proj", "out_proj"]
    assert [name for name, _ in MultiheadAttention(6, 2).named_children()] == ["in_proj", "out_proj"]


def test_what_is_shared_stays_shared() -> None:
    shared, one, other = (nn.MultiheadAttention(6, 2, kdim=kdim) for kdim in (None, 6, 6))
    other.in_proj_weight = one.in_proj_weight
    other.in_proj_bias = one.in_proj_bias
    narrow, narrow_too = (nn.MultiheadAttention(6, 2, kdim=3) for _ in range(2))
    narrow_too.in_proj_bias = narrow.in_proj_bias
    fixed = ModuleValidator.fix(nn.ModuleList([shared, one, other, shared, narrow, narrow_too]))
    assert fixed[4].v_proj.bias is fixed[5].v_proj.bias
    assert fixed[4].v_proj.weight is not fixed[5].v_proj.weight
    assert fixed[0] is fixed[3]
    assert fixed[1].in_proj.weight is fixed[2].in_proj.weight
    assert fixed[1].in_proj.bias is fixed[2].in_proj.bias
    copied = copy.deepcopy(fixed)
    assert copied[1].in_proj.weight is copied[2].in_proj.weight
    assert copied[1].in_proj.weight is not fixed[1].in_proj.weight


def test_hooks_go_along() -> None:
    plain, seen = nn.MultiheadAttention(6, 2), []
    plain.register_forward_hook(lambda _module, _args, output: seen.append(output[0].shape))
    x = torch.randn(3, 2, 6)
    ModuleValidator.fix(plain)(x, x, x)
    assert seen == [x.shape]


class OwnAttention(nn.MultiheadAttention):
    """May do anything."""


def test_what_is_not_quite_torchs_is_left() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.MultiheadAttention(6, 2), "in_proj_weight")
    given = nn.MultiheadAttention(6, 2)
    given.scale = nn.Parameter(torch.ones(1))
    changed: Any = nn.MultiheadAttention(6, 2)
    changed.forward = changed.forward
    for module in (OwnAttention(6, 2), normed, given, changed):
        fixed = ModuleValidator.fix(module)
        assert type(fixed) is type(module)
        with pytest.raises(UnsupportedModuleError, match="in_proj") as found:
            ModuleValidator.validate(fixed, strict=True)
        assert "fix" not in str(found.value)


def test_the_error_says_what_repairs_it() -> None:
    (error, *_) = ModuleValidator.validate(nn.TransformerEncoderLayer(6, 2, 8))
    assert "ModuleValidator.fix(model) puts aisec_fast.privacy.MultiheadAttention in its place" in str(error)
    assert "self_attn.in_proj_weight" in str(error)


def test_a_module_of_ones_own() -> None:
    """Made directly it starts as torch's does."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(6, 2, 0.1, True, True, kdim=4, vdim=5, batch_first=True)
    torch.manual_seed(0)
    ours = MultiheadAttention(6, 2, 0.1, True, True, kdim=4, vdim=5, batch_first=True)
    same(list(ours.state_dict().values()), list(plain.state_dict().values()), 0.0)
    assert ModuleValidator.is_valid(ours)
