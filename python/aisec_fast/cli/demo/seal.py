"""The demo's third part: the private model's files get a manifest, and one flipped bit in a copy is found."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aisec_fast.integrity import Manifest

WEIGHTS, CARD, MANIFEST = "weights.pt", "card.json", "manifest.json"


def save(model: nn.Module, card: dict[str, Any], folder: Path) -> Manifest:
    """Write the weights, what is to be known of them, and a manifest of both to ``folder``, which exists."""
    torch.save(model.state_dict(), folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    manifest = Manifest.from_directory(folder, ignore=(MANIFEST,))
    manifest.save(folder / MANIFEST)
    return manifest


def is_whole(folder: Path) -> bool:
    """Whether every file of ``folder`` is as its manifest says."""
    return Manifest.load(folder / MANIFEST).verify(folder).ok


def flip_a_bit(file: Path) -> None:
    """Change one bit of ``file``, anywhere."""
    content = bytearray(file.read_bytes())
    content[secrets.randbelow(len(content))] ^= 1 << secrets.randbelow(8)
    file.write_bytes(content)


def changed_after_tampering(folder: Path) -> tuple[str, ...]:
    """What the manifest says has changed, in a copy of ``folder`` whose weights have one flipped bit."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name
        shutil.copytree(folder, copy)
        flip_a_bit(copy / WEIGHTS)
        return Manifest.load(copy / MANIFEST).verify(copy).changed


def publish(aside: Path, folder: Path) -> None:
    """Move the finished folder ``aside`` to where it belongs; an older one there is replaced."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        folder.rename(old / folder.name)
        aside.rename(folder)
        shutil.rmtree(old)
    else:
        aside.rename(folder)


def check_folder(folder: Path) -> None:
    """FileExistsError if publishing to ``folder`` would remove something that is not ours."""
    if not folder.exists() and not folder.is_symlink():
        return
    strange = sorted({path.name for path in folder.iterdir()} - {WEIGHTS, CARD, MANIFEST}) if folder.is_dir() else []
    if strange or folder.is_symlink() or not folder.is_dir():
        what = f"holds {strange[0]!r}, which the demo did not write" if strange else "is not a folder of the demo's"
        raise FileExistsError(f"{folder} {what}: move it away, or run the demo elsewhere")
