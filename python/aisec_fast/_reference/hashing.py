"""The hashing contract (docs/hashing.md) in plain Python integers, one block after the other.

BLAKE3 after "BLAKE3: one function, fast everywhere" (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), SHA-256 after
FIPS 180-4. Section numbers below are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = list[int]
State: TypeAlias = NDArray[np.uint32]
Bytes: TypeAlias = NDArray[np.uint8]

MASK = 2**32 - 1


def _rotate_right(x: int, distance: int) -> int:
    return (x >> distance | x << (32 - distance)) & MASK


# --- Primes: the constants of both functions --------------------------------------------------------------------------


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def _cube_root(n: int) -> int:
    """The largest r with r^3 <= n."""
    low, high = 0, 1 << (n.bit_length() // 3 + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**3 <= n else (low, middle)
    return low


# First 32 bits of the fractions of square roots (FIPS 180-4, 5.3.3) and cube roots (4.2.2) of the first primes.
IV = [isqrt(prime << 64) & MASK for prime in _primes(8)]
K = [_cube_root(prime << 96) & MASK for prime in _primes(64)]


# --- BLAKE3 -----------------------------------------------------------------------------------------------------------

CHUNK, BLOCK = 1024, 64
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
KEYED_HASH, DERIVE_KEY_CONTEXT, DERIVE_KEY_MATERIAL = 16, 32, 64
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)  # table 2
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def compress(chaining: Sequence[int], message: Sequence[int], counter: int, length: int, flags: int) -> Words:
    """Return the 16 output words of the compression function (2.2)."""
    v = [*chaining, *IV[:4], counter & MASK, counter >> 32, length, flags]
    m = list(message)
    for _ in range(7):
        for i, (a, b, c, d) in enumerate((*COLUMNS, *DIAGONALS)):
            for word, right_d, right_b in ((m[2 * i], 16, 12), (m[2 * i + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & MASK
                v[d] = _rotate_right(v[d] ^ v[a], right_d)
                v[c] = (v[c] + v[d]) & MASK
                v[b] = _rotate_right(v[b] ^ v[c], right_b)
        m = [m[place] for place in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)] + [v[i + 8] ^ chaining[i] for i in range(8)]


def _words(block: bytes) -> Words:
    """The little-endian words of up to 64 bytes, filled up with zeros."""
    padded = block.ljust(BLOCK, b"\0")
    return [int.from_bytes(padded[i : i + 4], "little") for i in range(0, BLOCK, 4)]


class _Node:
    """The last compression of a chunk or parent, not done yet: as the root it is done another way (2.6)."""

    def __init__(self, chaining: Words, message: Words, counter: int, length: int, flags: int) -> None:
        self.chaining, self.message, self.counter, self.length, self.flags = chaining, message, counter, length, flags

    def chaining_value(self) -> Words:
        return compress(self.chaining, self.message, self.counter, self.length, self.flags)[:8]

    def output_block(self, number: int) -> bytes:
        words = compress(self.chaining, self.message, number, self.length, self.flags | ROOT)
        return b"".join(word.to_bytes(4, "little") for word in words)


def _chunk(key: Words, mode: int, data: bytes, counter: int) -> _Node:
    """A chunk of up to 1024 bytes (2.4)."""
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)] or [b""]
    chaining = key
    for i, block in enumerate(blocks):
        flags = mode | (CHUNK_START if i == 0 else 0) | (CHUNK_END if i == len(blocks) - 1 else 0)
        node = _Node(chaining, _words(block), counter, len(block), flags)
        if i < len(blocks) - 1:
            chaining = node.chaining_value()
    return node


def _parent(key: Words, mode: int, left: Words, right: Words) -> _Node:
    return _Node(key, left + right, 0, BLOCK, mode | PARENT)  # 2.5


class _Blake3State:
    """The 700 words of the contract, by name."""

    def __init__(self, state: State) -> None:
        words = [int(word) for word in state]
        self.key, self.mode = words[0:8], words[8]
        self.chunks = words[10] | words[11] << 32
        self.stack = [words[12 + 8 * i : 20 + 8 * i] for i in range(self.chunks.bit_count())]
        self.buffer = state[444:].tobytes()[: words[9]]

    def write_to(self, state: State) -> None:
        state[:444] = 0
        state[:12] = [*self.key, self.mode, len(self.buffer), self.chunks & MASK, self.chunks >> 32]
        for i, chaining in enumerate(self.stack):
            state[12 + 8 * i : 20 + 8 * i] = chaining
        state[444:] = np.frombuffer(self.buffer.ljust(CHUNK, b"\0"), np.uint32)

    def push(self, chaining: Words) -> None:
        """Put a chunk's chaining value on the stack and merge what is a whole subtree now; another chunk follows."""
        self.chunks += 1
        total = self.chunks
        while total % 2 == 0:
            chaining = _parent(self.key, self.mode, self.stack.pop(), chaining).chaining_value()
            total //= 2
        self.stack.append(chaining)

    def root(self) -> _Node:
        node = _chunk(self.key, self.mode, self.buffer, self.chunks)
        for left in reversed(self.stack):
            node = _parent(self.key, self.mode, left, node.chaining_value())
        return node


def blake3_update(state: State, data: Bytes, max_threads: int = 0) -> None:  # noqa: ARG001 - part of the contract
    """Absorb data. One thread, whatever max_threads is."""
    parts, rest = _Blake3State(state), data.tobytes()
    while rest:
        if len(parts.buffer) == CHUNK:
            parts.push(_chunk(parts.key, parts.mode, parts.buffer, parts.chunks).chaining_value())
            parts.buffer = b""
        taken = CHUNK - len(parts.buffer)
        parts.buffer, rest = parts.buffer + rest[:taken], rest[taken:]
    parts.write_to(state)


def blake3_output(state: State, out: Bytes, seek: int) -> None:
    """out = the bytes of the output stream from byte seek on."""
    root = _Blake3State(state).root()
    first, last = seek // BLOCK, (seek + out.size + BLOCK - 1) // BLOCK
    stream = b"".join(root.output_block(number) for number in range(first, last))
    out[:] = np.frombuffer(stream, np.uint8)[seek - first * BLOCK :][: out.size]


# --- SHA-256 ----------------------------------------------------------------------------------------------------------


def sha256_compress(chaining: Sequence[int], block: bytes) -> Words:
    """Return the chaining value after one block of 64 bytes (6.2.2)."""
    w = [int.from_bytes(block[i : i + 4], "big") for i in range(0, 64, 4)]
    for t in range(16, 64):
        s0 = _rotate_right(w[t - 15], 7) ^ _rotate_right(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = _rotate_right(w[t - 2], 17) ^ _rotate_right(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((s1 + w[t - 7] + s0 + w[t - 16]) & MASK)
    a, b, c, d, e, f, g, h = chaining
    for t in range(64):
        s1 = _rotate_right(e, 6) ^ _rotate_right(e, 11) ^ _rotate_right(e, 25)
        s0 = _rotate_right(a, 2) ^ _rotate_right(a, 13) ^ _rotate_right(a, 22)
        t1 = h + s1 + ((e & f) ^ (~e & g)) + K[t] + w[t]
        t2 = s0 + ((a & b) ^ (a & c) ^ (b & c))
        a, b, c, d, e, f, g, h = (t1 + t2) & MASK, a, b, c, (d + t1) & MASK, e, f, g
    return [(old + new) & MASK for old, new in zip(chaining, (a, b, c, d, e, f, g, h), strict=True)]


def sha256_update(state: State, data: Bytes) -> None:
    """Absorb data."""
    chaining, absorbed = [int(word) for word in state[:8]], int(state[8]) | int(state[9]) << 32
    waiting = state[10:].tobytes()[: absorbed % BLOCK] + data.tobytes()
    absorbed += data.size
    while len(waiting) >= BLOCK:
        chaining, waiting = sha256_compress(chaining, waiting[:BLOCK]), waiting[BLOCK:]
    state[:10] = [*chaining, absorbed & MASK, absorbed >> 32]
    state[10:] = np.frombuffer(waiting.ljust(BLOCK, b"\0"), np.uint32)


def sha256_output(state: State, out: Bytes) -> None:
    """out, 32 bytes, = the digest: of a padded copy (5.1.1), so that the state stays as it is."""
    absorbed = int(state[8]) | int(state[9]) << 32
    padding = b"\x80" + bytes((55 - absorbed) % BLOCK) + (8 * absorbed).to_bytes(8, "big")
    padded = state.copy()
    sha256_update(padded, np.frombuffer(padding, np.uint8))
    out[:] = np.frombuffer(b"".join(int(word).to_bytes(4, "big") for word in padded[:8]), np.uint8)


# --- Fresh states -----------------------------------------------------------------------------------------------------


def blake3_state(key: bytes | None = None, derive_key_context: str | None = None) -> State:
    """Return a fresh state of one of the three modes (2.3)."""
    state = np.zeros(700, np.uint32)
    state[:8] = IV
    if key is not None:
        state[:8], state[8] = np.frombuffer(key, np.uint32), KEYED_HASH
    elif derive_key_context is not None:
        state[8] = DERIVE_KEY_CONTEXT
        blake3_update(state, np.frombuffer(derive_key_context.encode(), np.uint8))
        context_key = np.zeros(32, np.uint8)
        blake3_output(state, context_key, 0)
        state[:] = 0
        state[:8], state[8] = context_key.view(np.uint32), DERIVE_KEY_MATERIAL
    return state


def sha256_state() -> State:
    """Return a fresh state."""
    state = np.zeros(26, np.uint32)
    state[:8] = IV
    return state
