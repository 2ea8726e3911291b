"""The hashing reference against what others say: official test vectors, FIPS 180-4, hashlib and PyPI's blake3."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import blake3
import numpy as np
import pytest

from aisec_fast._reference import hashing as reference

KEY = b"whats the Elvish word for friend"
CONTEXT = "BLAKE3 2019-12-27 16:29:52 test vectors context"
MODES: list[dict[str, Any]] = [{}, {"key": KEY}, {"derive_key_context": CONTEXT}]
# test_vectors.json of the BLAKE3 team: length of the input (byte i is i mod 251); first bytes of hash, keyed hash, key.
VECTORS = {
    0: (
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26",
        "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d",
    ),
    1: (
        "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
        "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b",
        "b3e2e340a117a499c6cf2398a19ee0d29cca2bb7404c73063382693bf66cb06c",
    ),
    1024: (
        "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
        "75c46f6f3d9eb4f55ecaaee480db732e6c2105546f1e675003687c31719c7ba4",
        "7356cd7720d5b66b6d0697eb3177d9f8d73a4a5c5e968896eb6a689684302706",
    ),
    1025: (
        "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
        "357dc55de0c7e382c900fd6e320acc04146be01db6a8ce7210b7189bd664ea69",
        "effaa245f065fbf82ac186839a249707c3bddf6d3fdda22d1b95a3c970379bcb",
    ),
    3073: (
        "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3",
        "68dede9bef00ba89e43f31a6825f4cf433389fedae75c04ee9f0cf16a427c95a",
        "72613c9ec9ff7e40f8f5c173784c532ad852e827dba2bf85b2ab4b76f7079081",
    ),
    7169: (
        "a003fc7a51754a9b3c7fae0367ab3d782dccf28855a03d435f8cfe74605e7817",
        "ed9b1a922c046fdb3d423ae34e143b05ca1bf28b710432857bf738bcedbfa511",
        "554b0a5efea9ef183f2f9b931b7497995d9eb26f5c5c6dad2b97d62fc5ac31d9",
    ),
}


def pattern(size: int) -> np.ndarray:
    """The input of the official vectors."""
    return (np.arange(size) % 251).astype(np.uint8)


def absorbed(mode: dict[str, Any], *parts: np.ndarray) -> np.ndarray:
    state = reference.blake3_state(**mode)
    for part in parts:
        reference.blake3_update(state, part)
    return state


def output(state: np.ndarray, size: int = 32, seek: int = 0) -> bytes:
    out = np.empty(size, np.uint8)
    reference.blake3_output(state, out, seek)
    return out.tobytes()


@pytest.mark.parametrize("size", VECTORS)
def test_official_vectors(size: int) -> None:
    for mode, expected in zip(MODES, VECTORS[size], strict=True):
        assert output(absorbed(mode, pattern(size))).hex() == expected


@pytest.mark.parametrize("mode", MODES, ids=["hash", "keyed", "derive"])
@pytest.mark.parametrize("size", [0, 1, 64, 65, 1023, 1024, 1025, 2048, 2049, 5000, 8193])
def test_blake3_of_others(size: int, mode: dict[str, Any]) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    state, other = absorbed(mode, data), blake3.blake3(data, **mode)
    for length, seek in ((0, 0), (1, 0), (131, 0), (200, 63), (64, 2**32 * 64 - 1), (77, 2**64 - 78)):
        assert output(state, length, seek) == other.digest(length, seek=seek)


def chaining_value(data: np.ndarray, first: int) -> list[int]:
    """That of a whole subtree, straight from the definition of the tree."""
    key = list(reference.IV)
    if data.size == 1024:
        for block in range(16):
            flags = (block == 0) * 1 | (block == 15) * 2
            words = data[64 * block :][:64].view(np.uint32).tolist()
            key = reference.compress(key, words, first, 64, flags)[:8]
        return key
    half = data.size // 2
    children = chaining_value(data[:half], first) + chaining_value(data[half:], first + half // 1024)
    return reference.compress(key, children, 0, 64, 4)[:8]


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 2048, 2049, 7 * 1024, 7 * 1024 + 1, 11 * 1024 + 5])
def test_the_layout_of_a_state(size: int) -> None:
    data = pattern(size)
    state = absorbed({}, data)
    chunks = max(0, size - 1) // 1024
    assert state[:8].tolist() == reference.IV
    assert state[8:12].tolist() == [0, size - 1024 * chunks, chunks, 0]
    stack, start = [], 0
    for bit in reversed(range(chunks.bit_length())):
        if chunks >> bit & 1:
            stack += chaining_value(data[1024 * start :][: 1024 << bit], start)
            start += 1 << bit
    assert state[12:444].tolist() == stack + [0] * (432 - len(stack))
    assert state[444:].tobytes() == data[1024 * chunks :].tobytes().ljust(1024, b"\0")


def test_a_chunk_number_beyond_32_bits() -> None:
    state = absorbed({}, pattern(1))
    state[10:12], state[12:20] = (0, 1), range(8)
    assert chaining_value(pattern(1024), 2**32) != chaining_value(pattern(1024), 0)
    reference.blake3_update(state, pattern(1024)[1:])
    assert state[10:12].tolist() == [0, 1]
    reference.blake3_update(state, pattern(1))
    assert state[10:12].tolist() == [1, 1]
    assert state[12:28].tolist() == [*range(8), *chaining_value(pattern(1024), 2**32)]


def test_splits_do_not_matter() -> None:
    data = pattern(6000)
    whole = absorbed({"key": KEY}, data)
    sha = reference.sha256_state()
    reference.sha256_update(sha, data)
    for cuts in ([0, 6000], [1, 1024, 1025, 4096], [1023, 2048, 2048, 5999], list(range(100, 6000, 100))):
        parts = [data[a:b] for a, b in pairwise([0, *cuts, 6000])]
        assert absorbed({"key": KEY}, *parts).tobytes() == whole.tobytes()
        state = reference.sha256_state()
        for part in parts:
            reference.sha256_update(state, part)
        assert state.tobytes() == sha.tobytes()


def test_constants_of_fips_180_4() -> None:
    assert [f"{word:08x}" for word in reference.IV] == (
        ["6a09e667", "bb67ae85", "3c6ef372", "a54ff53a", "510e527f", "9b05688c", "1f83d9ab", "5be0cd19"]
    )
    assert [f"{reference.K[t]:08x}" for t in (0, 1, 31, 62, 63)] == (
        ["428a2f98", "71374491", "14292967", "bef9a3f7", "c67178f2"]
    )


SHA_VECTORS = {  # NIST's examples
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
}


def sha256(data: bytes) -> bytes:
    state, out = reference.sha256_state(), np.empty(32, np.uint8)
    reference.sha256_update(state, np.frombuffer(data, np.uint8))
    before = state.tobytes()
    reference.sha256_output(state, out)
    assert state.tobytes() == before
    return out.tobytes()


def test_sha256_of_others() -> None:
    for data, expected in SHA_VECTORS.items():
        assert sha256(data).hex() == expected
    for size in (*range(53, 67), *range(118, 130), 1000):
        data = pattern(size).tobytes()
        assert sha256(data) == hashlib.sha256(data).digest()


def test_the_layout_of_a_sha256_state() -> None:
    state = reference.sha256_state()
    reference.sha256_update(state, pattern(130))
    assert state[8:10].tolist() == [130, 0]
    assert state[10:].tobytes() == bytes([128, 129]).ljust(64, b"\0")
