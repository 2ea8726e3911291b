"""Private gradients of well-known models beside loops over their single samples.

    python -m pip install transformers timm torchvision
    python benchmarks/evidence/models.py              some minutes of two cores
    python benchmarks/evidence/models.py bert resnet  only models with these words in their names

Each model, small where its library lets one choose, random and without dropout, takes one private step without noise in
float64 on four samples, after ``ModuleValidator.fix``, and one backward pass for each sample alone. Both sums of clipped
gradients must agree up to rounding (a weight's upper bounds and margin: 1e-7 of the largest value); the exit code is 1 if some
do not. A model that the engine refuses is listed with the reason.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import record
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import PrivacyError
from aisec_fast.privacy import ModuleValidator, PrivacyEngine

SAMPLES, RECORDS, WORDS, CLASSES, CLIP = 4, 16, 100, 10, 0.7
# So that no sample is clipped by what its rounding may be (docs/privacy.md, section 4) in place of its norm, which a loop
# over samples knows nothing of: few positions.
POSITIONS, PIXELS = 8, 64
Case = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor, Tensor]

IMAGES = {
    "torchvision.models": "resnet18 mobilenet_v3_small densenet121 vgg11_bn shufflenet_v2_x0_5 squeezenet1_0 "
    "mnasnet0_5 regnet_y_400mf convnext_tiny swin_t",
    "timm": "vit_tiny_patch16_224 resnetv2_50 mixer_s32_224 convnext_atto cait_xxs24_224 beit_base_patch16_224 "
    "swin_tiny_patch4_window7_224",
}
# Of models with a size of images: that, and what else makes them small.
SIZES: dict[str, dict[str, int]] = {
    "cait_xxs24_224": {"depth": 2},
    "beit_base_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": PIXELS, "window_size": 4},
}
TEXTS = "Bert DistilBert Roberta GPT2 GPTNeoX Llama Mistral Qwen2 OPT"


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Names, and what makes the model, its call, the samples and their labels."""
    import timm
    import torchvision
    import transformers

    def images(make: Callable[[], nn.Module], pixels: int = PIXELS) -> Case:
        samples = torch.randn(SAMPLES, 3, pixels, pixels, dtype=torch.float64)
        return make(), lambda model, x: model(x), samples, torch.randint(CLASSES, (SAMPLES,))

    for name in IMAGES["torchvision.models"].split():
        make = getattr(torchvision.models, name)
        yield f"torchvision {name}", lambda make=make: images(lambda: make(num_classes=CLASSES))
    for name in IMAGES["timm"].split():
        size = {} if "resnet" in name or "convnext" in name else {"img_size": PIXELS // 2} | SIZES.get(name, {})
        yield (
            f"timm {name}",
            lambda name=name, size=size: images(
                lambda: timm.create_model(name, num_classes=CLASSES, **size), size.get("img_size", PIXELS)
            ),
        )

    def texts(name: str) -> Case:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        sizes |= {"num_key_value_heads": 2} if name in ("Mistral", "Qwen2") else {}
        by_name = {
            "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 32},
            "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
            "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64},
        }
        config = getattr(transformers, f"{name}Config")(
            vocab_size=WORDS, num_labels=CLASSES, pad_token_id=0, **by_name.get(name, sizes)
        )
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
        tokens = torch.randint(5, WORDS, (SAMPLES, POSITIONS))
        return model, lambda m, x: m(input_ids=x).logits, tokens, torch.randint(CLASSES, (SAMPLES,))

    def clip() -> Case:
        config = transformers.CLIPVisionConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=PIXELS,
            patch_size=PIXELS // 4, num_labels=CLASSES,
        )  # fmt: skip
        model, _, samples, labels = images(lambda: transformers.CLIPForImageClassification(transformers.CLIPConfig(
            vision_config=config.to_dict(), num_labels=CLASSES)))  # fmt: skip
        return model, lambda m, x: m(pixel_values=x).logits, samples, labels

    yield "transformers CLIP vision", clip
    for name in TEXTS.split():
        yield f"transformers {name}", lambda name=name: texts(name)


def without_dropout(model: nn.Module) -> nn.Module:
    """Every layer that draws random numbers lets all pass."""
    for layer in model.modules():
        for name in ("p", "drop_prob", "attn_drop", "attention_dropout"):
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    return model


def losses(output: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, labels, reduction="none")


def by_engine(case: Case) -> list[Tensor]:
    model, call, x, y = case
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no noise; a batch of our own
        PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(TensorDataset(torch.arange(RECORDS)), batch_size=RECORDS),
            noise_multiplier=0.0,
            max_grad_norm=CLIP,
            loss_reduction="sum",
        )
        losses(call(model, x), y).sum().backward()
        optimizer.step()
    return [p.grad for p in model.parameters() if p.grad is not None]


def by_samples(case: Case) -> list[Tensor]:
    model, call, x, y = case
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    for i in range(len(x)):
        loss = losses(call(model, x[i : i + 1]), y[i : i + 1]).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norm = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += gradient * min(1.0, CLIP / norm)
    return sums


def main() -> int:
    words, rows, wrong, start = sys.argv[1:], [], 0, time.perf_counter()
    for name, make in cases():
        if words and not any(word.lower() in name.lower() for word in words):
            continue
        torch.manual_seed(0)
        model, call, x, y = make()
        case: Any = without_dropout(ModuleValidator.fix(model.double().train())), call, x, y
        expected = by_samples(copy.deepcopy(case))
        try:
            found = by_engine(case)
        except PrivacyError as error:
            rows.append({"model": name, "refused": str(error)})
            print(f"{name:40} refused: {str(error)[:160]}", flush=True)
            continue
        largest = max(float(e.abs().max()) for e in expected)
        apart = max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)) / largest
        wrong += apart > 1e-7
        rows.append({"model": name, "parameters": sum(e.numel() for e in expected), "apart": apart})
        print(f"{name:40} {apart:.1e} of the largest value apart", flush=True)
    if not words:
        record.write("models", {"samples": SAMPLES, "max_grad_norm": CLIP, "rows": rows}, time.perf_counter() - start)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
