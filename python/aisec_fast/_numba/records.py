"""Digests of many records for Numba. docs/hashing-records.md is the contract.

A lane is a record, and a vector element: BLAKE3 takes LANES records at once as it takes chunks, and so does SHA-256. Lanes
that have no block left go on with what they hold, and their results are left where they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, quiet, thread_count
from aisec_fast._numba.hashing import (
    BLOCK,
    CHUNK,
    CHUNK_END,
    CHUNK_START,
    FLAGS,
    I64,
    LANES,
    LENGTH,
    MESSAGE,
    MODE,
    NO_ROOTS,
    ROOT,
    ROWS,
    STATE,
    U8,
    U32,
    Bytes,
    Eight,
    K,
    Words,
    _absorb,
    _compress_lanes,
    _eight,
    _output,
    _read_only,
    _rotate_right,
    _sha_round,
    _swapped,
)

U64: TypeAlias = np.uint64
Longs: TypeAlias = NDArray[np.uint64]
Places: TypeAlias = NDArray[np.int64]
Four: TypeAlias = tuple[U64, U64, U64, U64]

FEWEST_RECORDS = 4096  # below that many bytes' worth threads cost more than they save
RECORD_COST = 128  # a record costs about as much as this many of its bytes


# --- BLAKE3 -----------------------------------------------------------------------------------------------------------


@inlined
def _long_word(data: Bytes, at: U64) -> U64:
    """The 8 bytes at a position, as a little-endian word."""
    low = U32(U32(data[at]) | U32(U32(data[at + U64(1)]) << U32(8)))
    low = U32(low | U32(U32(U32(data[at + U64(2)]) << U32(16)) | U32(U32(data[at + U64(3)]) << U32(24))))
    high = U32(U32(data[at + U64(4)]) | U32(U32(data[at + U64(5)]) << U32(8)))
    high = U32(high | U32(U32(U32(data[at + U64(6)]) << U32(16)) | U32(U32(data[at + U64(7)]) << U32(24))))
    return U64(U64(low) | U64(U64(high) << U64(32)))


@inlined
def _last_word(part: Bytes) -> U64:
    """The bytes behind the last whole word of 8, as the low bytes of a word."""
    rest = part.size % 8
    last = U64(0)
    if rest > 0 and part.size > 8:
        last = U64(_long_word(part, U64(part.size - 8)) >> U64(8 * (8 - rest)))
    else:
        for i in range(part.size - rest, part.size):
            last = U64(last | U64(U64(part[i]) << U64(8 * (i % 8))))
    return last


@inlined
def _load_block(blocks: Longs, first: U64, data: Bytes, start: U64, size: U64) -> None:
    """Words `first` to first + 7 of blocks = `size` bytes of data, at most 64, from `start` on, and zeros.

    By places without signs: slices of arrays, and places that may be negative, cost more than the rest.
    """
    whole, rest = U64(size >> U64(3)), U64(size & U64(7))
    for k in range(8):
        blocks[first + U64(k)] = U64(0)
    for k in range(whole):
        blocks[first + U64(k)] = _long_word(data, U64(start + U64(U64(8) * U64(k))))
    if rest > 0:
        last = U64(0)
        if size > 8:
            last = U64(_long_word(data, U64(start + U64(size - U64(8)))) >> U64(U64(8) * U64(U64(8) - rest)))
        else:
            for i in range(rest):
                last = U64(last | U64(U64(data[U64(start + U64(i))]) << U64(U64(8) * U64(i))))
        blocks[first + whole] = last


@inlined
def _to_columns(rows: Words, s: Words, first: int) -> None:
    """Block `lane` of rows becomes column `lane` of s, whose first row begins at word `first`."""
    for k in range(16):
        for lane in range(LANES):
            s[first + k * LANES + lane] = rows[16 * lane + k]


@inlined
def _write_digest(out: Bytes, words: Words, row: int, s: Words, lane: int) -> None:
    """The first bytes of column `lane` of s go to a row of out: through `words`, its view as words, if that is not empty."""
    if words.shape[0] > 0:
        for k in range(words.shape[1]):
            words[row, k] = s[k * LANES + lane]
    else:
        for i in range(out.shape[1]):
            out[row, i] = U8(U32(s[(i // 4) * LANES + lane] >> U32(8 * (i % 4))) & U32(0xFF))


@kernel
def _blake3(
    data: Bytes, starts: Places, ends: Places, key: Words, mode: U32, out: Bytes, words: Words, begin: int, end: int
) -> None:
    s, fresh = np.zeros(ROWS * LANES, U32), np.zeros(STATE, U32)
    blocks = np.zeros(8 * LANES, U64)
    rows = blocks.view(U32)
    fresh[:8] = key
    fresh[MODE] = mode
    size = out.shape[1]
    index, left = np.empty(LANES, I64), np.empty(LANES, I64)
    at = begin
    while at < end:
        lanes, most = 0, 0
        while at < end and lanes < LANES:
            length = I64(ends[at]) - I64(starts[at])
            if length > CHUNK or size > BLOCK:
                state = fresh.copy()
                _absorb(state, NO_ROOTS, data[I64(starts[at]) : I64(ends[at])])
                _output(state, out[at], 0, 0)
            else:
                index[lanes], left[lanes] = at, length
                most = max(most, length)
                lanes += 1
            at += 1
        for k in range(8):
            for lane in range(LANES):
                s[k * LANES + lane] = key[k]
        for block in range(max(1, (most + BLOCK - 1) // BLOCK)):
            for lane in range(lanes):
                done = block * BLOCK
                part = max(0, min(BLOCK, left[lane] - done))
                start = I64(starts[index[lane]]) + min(done, left[lane])
                _load_block(blocks, U64(8 * lane), data, U64(start), U64(part))
                flags = U32(mode)
                if block == 0:
                    flags = U32(flags | CHUNK_START)
                if left[lane] <= done + BLOCK:
                    flags = U32(U32(flags | CHUNK_END) | ROOT)
                s[LENGTH + lane], s[FLAGS + lane] = U32(part), flags
            _to_columns(rows, s, MESSAGE)
            _compress_lanes(s)
            for lane in range(lanes):
                if max(1, (left[lane] + BLOCK - 1) // BLOCK) - 1 == block:
                    _write_digest(out, words, index[lane], s, lane)


# --- SHA-256 ----------------------------------------------------------------------------------------------------------


@inlined
def _sha_word(w16: U32, w15: U32, w7: U32, w2: U32) -> U32:
    """The word of the message schedule that comes as many places after each of these."""
    s0 = U32(U32(_rotate_right(w15, 7) ^ _rotate_right(w15, 18)) ^ U32(w15 >> U32(3)))
    s1 = U32(U32(_rotate_right(w2, 17) ^ _rotate_right(w2, 19)) ^ U32(w2 >> U32(10)))
    return U32(U32(w16 + s0) + U32(w7 + s1))


@inlined
def _set_eight(v: Words, at: int, words: Eight) -> None:
    v[at], v[at + LANES], v[at + 2 * LANES], v[at + 3 * LANES] = words[0], words[1], words[2], words[3]
    v[at + 4 * LANES], v[at + 5 * LANES], v[at + 6 * LANES], v[at + 7 * LANES] = words[4], words[5], words[6], words[7]


@kernel
def _sha_rounds(v: Words, t: int) -> None:
    """Rounds t to t + 7 of every lane: v has the eight variables and the next sixteen words of the schedule.

    One array, one loop, and variables that end with it: else LLVM does not make vectors of the lanes.
    """
    for lane in range(LANES):
        a, b, c, d, e, f, g, z = _eight(v, lane)
        m = _eight(v, 8 * LANES + lane) + _eight(v, 16 * LANES + lane)
        d, z = _sha_round(a, b, c, d, e, f, g, z, U32(K[t + 0] + m[0]))
        c, g = _sha_round(z, a, b, c, d, e, f, g, U32(K[t + 1] + m[1]))
        b, f = _sha_round(g, z, a, b, c, d, e, f, U32(K[t + 2] + m[2]))
        a, e = _sha_round(f, g, z, a, b, c, d, e, U32(K[t + 3] + m[3]))
        z, d = _sha_round(e, f, g, z, a, b, c, d, U32(K[t + 4] + m[4]))
        g, c = _sha_round(d, e, f, g, z, a, b, c, U32(K[t + 5] + m[5]))
        f, b = _sha_round(c, d, e, f, g, z, a, b, U32(K[t + 6] + m[6]))
        e, a = _sha_round(b, c, d, e, f, g, z, a, U32(K[t + 7] + m[7]))
        n0 = _sha_word(m[0], m[1], m[9], m[14])
        n1 = _sha_word(m[1], m[2], m[10], m[15])
        n2 = _sha_word(m[2], m[3], m[11], n0)
        n3 = _sha_word(m[3], m[4], m[12], n1)
        n4 = _sha_word(m[4], m[5], m[13], n2)
        n5 = _sha_word(m[5], m[6], m[14], n3)
        n6 = _sha_word(m[6], m[7], m[15], n4)
        n7 = _sha_word(m[7], m[8], n0, n5)
        _set_eight(v, lane, (a, b, c, d, e, f, g, z))
        _set_eight(v, 8 * LANES + lane, (m[8], m[9], m[10], m[11], m[12], m[13], m[14], m[15]))
        _set_eight(v, 16 * LANES + lane, (n0, n1, n2, n3, n4, n5, n6, n7))


@kernel
def _sha_lanes(h: Words, v: Words) -> None:
    """The compression function on every lane: h, [8 LANES], with the block in v[8 LANES : 24 LANES]; v is overwritten."""
    v[: 8 * LANES] = h
    for t in range(0, 64, 8):
        _sha_rounds(v, t)
    for i in range(8 * LANES):
        h[i] = U32(h[i] + v[i])


@inlined
def _swap_all(words: Words, count: int) -> None:
    for i in range(count):
        words[i] = _swapped(words[i])


@kernel
def _sha256(
    data: Bytes, starts: Places, ends: Places, chaining: Words, out: Bytes, words: Words, begin: int, end: int
) -> None:
    h, v, last = np.zeros(16 * LANES, U32), np.zeros(24 * LANES, U32), np.empty(8 * LANES, U32)
    w = v[8 * LANES :]
    blocks = np.zeros(8 * LANES, U64)
    rows, padded = blocks.view(U32), blocks.view(U8)
    keyed = chaining.size == 16
    for at in range(begin, end, LANES):
        lanes, most = min(LANES, end - at), 0
        for lane in range(lanes):
            most = max(most, I64(ends[at + lane]) - I64(starts[at + lane]))
        for k in range(8):
            for lane in range(LANES):
                h[k * LANES + lane] = chaining[k]
        for block in range((most + 8) // BLOCK + 1):
            for lane in range(lanes):
                start, length = I64(starts[at + lane]), I64(ends[at + lane]) - I64(starts[at + lane])
                place = length - block * BLOCK  # where in this block the record ends and its padding begins (5.1.1)
                part = max(0, min(BLOCK, place))
                _load_block(blocks, U64(8 * lane), data, U64(start + length - max(0, place)), U64(part))
                if 0 <= place < BLOCK:
                    padded[BLOCK * lane + place] = U8(0x80)
            _to_columns(rows, w, 0)
            _swap_all(w, 16 * LANES)
            for lane in range(lanes):
                length = I64(ends[at + lane]) - I64(starts[at + lane])
                if (length + 8) // BLOCK == block:
                    bits = 8 * (length + (BLOCK if keyed else 0))
                    w[14 * LANES + lane], w[15 * LANES + lane] = U32(bits >> 32), U32(bits & 0xFFFFFFFF)
            _sha_lanes(h[: 8 * LANES], v)
            for lane in range(lanes):
                if (I64(ends[at + lane]) - I64(starts[at + lane]) + 8) // BLOCK == block:
                    for k in range(8):
                        last[k * LANES + lane] = h[k * LANES + lane]
        h[: 8 * LANES] = last
        if keyed:
            w[: 8 * LANES] = last
            w[8 * LANES : 16 * LANES] = U32(0)
            w[8 * LANES : 9 * LANES] = U32(0x80000000)
            w[15 * LANES : 16 * LANES] = U32(8 * (BLOCK + 32))
            for k in range(8):
                for lane in range(LANES):
                    h[k * LANES + lane] = chaining[8 + k]
            _sha_lanes(h[: 8 * LANES], v)
        _swap_all(h, 8 * LANES)
        for lane in range(lanes):
            _write_digest(out, words, at + lane, h, lane)


# --- SipHash ----------------------------------------------------------------------------------------------------------


@inlined
def _rotate_left(x: U64, distance: int) -> U64:
    return U64(U64(x << U64(distance)) | U64(x >> U64(64 - distance)))


@inlined
def _sip_round(v0: U64, v1: U64, v2: U64, v3: U64) -> Four:
    v0, v2 = U64(v0 + v1), U64(v2 + v3)
    v1, v3 = U64(_rotate_left(v1, 13) ^ v0), U64(_rotate_left(v3, 16) ^ v2)
    v0 = _rotate_left(v0, 32)
    v2, v0 = U64(v2 + v1), U64(v0 + v3)
    v1, v3 = U64(_rotate_left(v1, 17) ^ v2), U64(_rotate_left(v3, 21) ^ v0)
    return v0, v1, _rotate_left(v2, 32), v3


@inlined
def _sip_words(key: Words, k: int) -> U64:
    return U64(U64(key[2 * k]) | U64(U64(key[2 * k + 1]) << U64(32)))


@inlined
def _write_word(row: Bytes, at: int, word: U64) -> None:
    for i in range(8):
        row[at + i] = U8(U64(word >> U64(8 * i)) & U64(0xFF))


@kernel
def _siphash(data: Bytes, starts: Places, ends: Places, key: Words, out: Bytes, begin: int, end: int) -> None:
    k0, k1, wide = _sip_words(key, 0), _sip_words(key, 1), out.shape[1] == 16
    for at in range(begin, end):
        record = data[I64(starts[at]) : I64(ends[at])]
        v0, v1 = U64(k0 ^ U64(0x736F6D6570736575)), U64(k1 ^ U64(0x646F72616E646F6D))
        v2, v3 = U64(k0 ^ U64(0x6C7967656E657261)), U64(k1 ^ U64(0x7465646279746573))
        if wide:
            v1 = U64(v1 ^ U64(0xEE))
        whole = record.size // 8
        for k in range(whole + 1):
            if k < whole:
                word = _long_word(record, U64(8 * k))
            else:
                word = U64(U64(U64(record.size & 0xFF) << U64(56)) | _last_word(record))
            v3 = U64(v3 ^ word)
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
            v0 = U64(v0 ^ word)
        v2 = U64(v2 ^ (U64(0xEE) if wide else U64(0xFF)))
        for _ in range(4):
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        _write_word(out[at], 0, U64(U64(v0 ^ v1) ^ U64(v2 ^ v3)))
        if wide:
            v1 = U64(v1 ^ U64(0xDD))
            for _ in range(4):
                v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
            _write_word(out[at], 8, U64(U64(v0 ^ v1) ^ U64(v2 ^ v3)))


# --- The backend's interface ------------------------------------------------------------------------------------------


def _over_threads(starts: Places, ends: Places, max_threads: int, task: Callable[[int, int], object]) -> None:
    if starts.size == 0:
        return
    cost = int(np.subtract(ends, starts, dtype=np.int64).sum()) + RECORD_COST * starts.size
    threads = min(max_threads or thread_count(), thread_count(), max(1, cost // (RECORD_COST * FEWEST_RECORDS)))
    parallel_for(starts.size, threads, task)


def _places(places: NDArray[np.uint32] | Places) -> Places:
    """As int64: Numba would compile once more for each type, and for memory that can be written."""
    wide = places.astype(np.int64) if places.dtype != np.int64 else places.view()
    wide.flags.writeable = False
    return wide


def _as_words(out: Bytes) -> Words:
    """The digests as words, or nothing if they are not made of whole ones."""
    if out.shape[1] % 4 == 0 and out.ctypes.data % 4 == 0:
        return out.view(U32)
    return np.empty((0, 0), U32)


@quiet
def blake3_records(
    data: Bytes, starts: Places, ends: Places, key: Words, mode: int, out: Bytes, max_threads: int
) -> None:
    """out[i] = the first bytes of BLAKE3's output for record i."""
    data, starts, ends, key = _read_only(data), _places(starts), _places(ends), key.copy()
    words = _as_words(out)
    _over_threads(
        starts,
        ends,
        max_threads,
        lambda begin, end: _blake3(data, starts, ends, key, U32(mode), out, words, begin, end),
    )


@quiet
def sha256_records(data: Bytes, starts: Places, ends: Places, chaining: Words, out: Bytes, max_threads: int) -> None:
    """out[i] = the first bytes of SHA-256 or, with a second chaining value, of HMAC."""
    data, starts, ends, chaining = _read_only(data), _places(starts), _places(ends), chaining.reshape(-1).copy()
    words = _as_words(out)
    _over_threads(
        starts, ends, max_threads, lambda begin, end: _sha256(data, starts, ends, chaining, out, words, begin, end)
    )


@quiet
def siphash24_records(data: Bytes, starts: Places, ends: Places, key: Words, out: Bytes, max_threads: int) -> None:
    """out[i] = SipHash-2-4 of as many bytes as out has columns."""
    data, starts, ends, key = _read_only(data), _places(starts), _places(ends), key.copy()
    _over_threads(starts, ends, max_threads, lambda begin, end: _siphash(data, starts, ends, key, out, begin, end))
