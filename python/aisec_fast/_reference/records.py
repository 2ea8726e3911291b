"""The contract of docs/hashing-records.md in plain Python integers, one record after the other.

SipHash after "SipHash: a fast short-input PRF" (Aumasson and Bernstein, 2012), its 128-bit output after the authors'
reference code; HMAC after RFC 2104. BLAKE3 and SHA-256 are those of :mod:`.hashing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .hashing import (
    BLOCK,
    Bytes,
    State,
    blake3_output,
    blake3_state,
    blake3_update,
    sha256_compress,
    sha256_output,
    sha256_state,
    sha256_update,
)

MASK = 2**64 - 1


# --- SipHash-2-4 ------------------------------------------------------------------------------------------------------


def _rotate_left(x: int, distance: int) -> int:
    return (x << distance | x >> (64 - distance)) & MASK


def _sip_rounds(v: list[int], rounds: int) -> None:
    """SipRound, figure 2.1 of the paper."""
    for _ in range(rounds):
        v[0] = (v[0] + v[1]) & MASK
        v[1] = _rotate_left(v[1], 13) ^ v[0]
        v[0] = _rotate_left(v[0], 32)
        v[2] = (v[2] + v[3]) & MASK
        v[3] = _rotate_left(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & MASK
        v[3] = _rotate_left(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & MASK
        v[1] = _rotate_left(v[1], 17) ^ v[2]
        v[2] = _rotate_left(v[2], 32)


def siphash24(key: bytes, message: bytes, size: int) -> bytes:
    """SipHash-2-4 of 8 bytes, or SipHash-2-4-128 of 16 (2.1 to 2.4)."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    if size == 16:
        v[1] ^= 0xEE
    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        _sip_rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xEE if size == 16 else 0xFF
    _sip_rounds(v, 4)
    digest = (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
    if size == 16:
        v[1] ^= 0xDD
        _sip_rounds(v, 4)
        digest += (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
    return digest


# --- SHA-256 and HMAC -------------------------------------------------------------------------------------------------


def sha256(message: bytes) -> bytes:
    """SHA-256."""
    return _sha256_from(sha256_state(), message)


def _sha256_from(state: State, message: bytes) -> bytes:
    out = np.empty(32, np.uint8)
    sha256_update(state, np.frombuffer(message, np.uint8))
    sha256_output(state, out)
    return out.tobytes()


def hmac_blocks(key: bytes) -> tuple[bytes, bytes]:
    """The blocks that the inner and the outer hash begin with: K XOR ipad and K XOR opad (RFC 2104, section 2)."""
    padded = (sha256(key) if len(key) > BLOCK else key).ljust(BLOCK, b"\0")
    return bytes(byte ^ 0x36 for byte in padded), bytes(byte ^ 0x5C for byte in padded)


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC with SHA-256."""
    inner, outer = hmac_blocks(key)
    return sha256(outer + sha256(inner + message))


def hmac_chaining(key: bytes) -> State:
    """SHA-256's chaining values after either block, ``[2, 8]``."""
    start = [int(word) for word in sha256_state()[:8]]
    return np.array([sha256_compress(start, block) for block in hmac_blocks(key)], np.uint32)


# --- The backend's interface ------------------------------------------------------------------------------------------


def _records(data: Bytes, starts: Any, ends: Any) -> Iterator[Bytes]:
    for start, end in zip(starts, ends, strict=True):
        yield data[int(start) : int(end)]


def blake3_records(data: Bytes, starts: Any, ends: Any, key: State, mode: int, out: Bytes) -> None:
    """out[i] = output stream of BLAKE3 in a mode."""
    for i, record in enumerate(_records(data, starts, ends)):
        state = blake3_state()
        state[:8], state[8] = key, mode
        blake3_update(state, record)
        blake3_output(state, out[i], 0)


def sha256_records(data: Bytes, starts: Any, ends: Any, chaining: State, out: Bytes) -> None:
    """out[i] = first bytes of SHA-256, or, with a second chaining value, of HMAC."""
    inner, *outer = chaining.reshape(-1, 8)

    def after(words: State, message: bytes, blocks: int) -> bytes:
        state = sha256_state()
        state[:8], state[8] = words, BLOCK * blocks
        return _sha256_from(state, message)

    for i, record in enumerate(_records(data, starts, ends)):
        digest = after(inner, record.tobytes(), len(outer))
        for words in outer:
            digest = after(words, digest, 1)
        out[i] = np.frombuffer(digest[: out.shape[1]], np.uint8)


def siphash24_records(data: Bytes, starts: Any, ends: Any, key: State, out: Bytes) -> None:
    """out[i] = SipHash-2-4 of as many bytes as out has columns."""
    for i, record in enumerate(_records(data, starts, ends)):
        out[i] = np.frombuffer(siphash24(key.tobytes(), record.tobytes(), out.shape[1]), np.uint8)
