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
    I64,
    LANES,
    MESSAGE,
    MODE,
    NO_ROOTS,
    ROOT,
    ROWS,
    STATE,
    U8,
    U32,
    Bytes,
    K,
    Words,
    _absorb,
    _compress_column,
    _eight,
    _output,
    _read_only,
    _rotate_right,
    _swapped,
    _word,
)

U64: TypeAlias = np.uint64
Places: TypeAlias = NDArray[np.int64]
Four: TypeAlias = tuple[U64, U64, U64, U64]

# Rows of the scratch array after those of _numba/hashing.py: a lane's length and flags.
LENGTH, FLAGS, SCRATCH = ROWS * LANES, (ROWS + 1) * LANES, (ROWS + 2) * LANES
FEWEST_RECORDS = 4096  # below that many bytes' worth threads cost more than they save
RECORD_COST = 128  # a record costs about as much as this many of its bytes


# --- BLAKE3 -----------------------------------------------------------------------------------------------------------


@inlined
def _load(data: Bytes, start: int, size: int, s: Words, row: int) -> None:
    """Column `row` of s = the words of at most 64 bytes, zeros after them."""
    whole = size // 4
    part, column = data[start : start + size], s[row:]
    for k in range(whole):
        column[k * LANES] = _word(part, 4 * k)
    for k in range(whole, 16):
        column[k * LANES] = U32(0)
    for i in range(4 * whole, size):
        at = (i // 4) * LANES
        column[at] = U32(column[at] | U32(U32(part[i]) << U32(8 * (i % 4))))


@kernel
def _compress_lanes(s: Words) -> None:
    """The compression function on every column, each with a length and flags of its own."""
    for lane in range(LANES):
        _compress_column(s, lane, s[LENGTH + lane], s[FLAGS + lane])


@inlined
def _write(s: Words, lane: int, row: Bytes) -> None:
    """The first bytes of a lane's output."""
    size = row.size
    for k in range(size // 4):
        word = s[k * LANES + lane]
        row[4 * k] = U8(word & U32(0xFF))
        row[4 * k + 1] = U8(U32(word >> U32(8)) & U32(0xFF))
        row[4 * k + 2] = U8(U32(word >> U32(16)) & U32(0xFF))
        row[4 * k + 3] = U8(word >> U32(24))
    for i in range(size // 4 * 4, size):
        row[i] = U8(U32(s[(i // 4) * LANES + lane] >> U32(8 * (i % 4))) & U32(0xFF))


@kernel
def _blake3(
    data: Bytes, starts: Places, ends: Places, key: Words, mode: U32, out: Bytes, begin: int, end: int
) -> None:
    s, fresh, saved = np.zeros(SCRATCH, U32), np.zeros(STATE, U32), np.empty((LANES, 8), U32)
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
                i, done = index[lane], block * BLOCK
                part = max(0, min(BLOCK, left[lane] - done))
                _load(data, I64(starts[i]) + min(done, left[lane]), part, s, MESSAGE + lane)
                flags = U32(mode)
                if block == 0:
                    flags = U32(flags | CHUNK_START)
                if left[lane] <= done + BLOCK:
                    flags = U32(U32(flags | CHUNK_END) | ROOT)
                s[LENGTH + lane], s[FLAGS + lane] = U32(part), flags
            _compress_lanes(s)
            for lane in range(lanes):
                last = max(1, (left[lane] + BLOCK - 1) // BLOCK) - 1
                if last == block:
                    _write(s, lane, out[index[lane]])


# --- SHA-256 ----------------------------------------------------------------------------------------------------------


@kernel
def _sha_lanes(h: Words, w: Words, v: Words) -> None:
    """The compression function on every lane: h, [8 LANES], with the block in w[: 16 LANES]; the rest of w, and v, are scratch."""
    for t in range(16, 64):
        for lane in range(LANES):
            x, y = w[(t - 15) * LANES + lane], w[(t - 2) * LANES + lane]
            s0 = U32(U32(_rotate_right(x, 7) ^ _rotate_right(x, 18)) ^ U32(x >> U32(3)))
            s1 = U32(U32(_rotate_right(y, 17) ^ _rotate_right(y, 19)) ^ U32(y >> U32(10)))
            w[t * LANES + lane] = U32(U32(w[(t - 16) * LANES + lane] + s0) + U32(w[(t - 7) * LANES + lane] + s1))
    v[:] = h
    for t in range(64):
        # The eight variables do not move: in round t variable k is row (k - t) % 8.
        ra, rb, rc, rd = (-t) % 8 * LANES, (1 - t) % 8 * LANES, (2 - t) % 8 * LANES, (3 - t) % 8 * LANES
        re, rf, rg, rh = (4 - t) % 8 * LANES, (5 - t) % 8 * LANES, (6 - t) % 8 * LANES, (7 - t) % 8 * LANES
        constant = K[t]
        for lane in range(LANES):
            a, b, c, e = v[ra + lane], v[rb + lane], v[rc + lane], v[re + lane]
            f, g = v[rf + lane], v[rg + lane]
            s1 = U32(U32(_rotate_right(e, 6) ^ _rotate_right(e, 11)) ^ _rotate_right(e, 25))
            choice = U32(g ^ U32(e & U32(f ^ g)))
            t1 = U32(U32(U32(v[rh + lane] + s1) + choice) + U32(constant + w[t * LANES + lane]))
            s0 = U32(U32(_rotate_right(a, 2) ^ _rotate_right(a, 13)) ^ _rotate_right(a, 22))
            majority = U32(U32(a & b) | U32(c & U32(a | b)))
            v[rd + lane] = U32(v[rd + lane] + t1)
            v[rh + lane] = U32(U32(t1 + s0) + majority)
    for i in range(8 * LANES):
        h[i] = U32(h[i] + v[i])


@inlined
def _load_padded(data: Bytes, start: int, size: int, done: int, bits: int, w: Words, lane: int) -> None:
    """Column `lane` of w = the block at byte `done` of a record with its padding (FIPS 180-4, 5.1.1)."""
    part = max(0, min(BLOCK, size - done))
    _load(data, start + min(done, size), part, w, lane)
    place = size - done
    if 0 <= place < BLOCK:
        w[(place // 4) * LANES + lane] |= U32(U32(0x80) << U32(8 * (place % 4)))
    for k in range(16):
        w[k * LANES + lane] = _swapped(w[k * LANES + lane])
    if place <= BLOCK - 9:
        w[14 * LANES + lane], w[15 * LANES + lane] = U32(bits >> 32), U32(bits & 0xFFFFFFFF)


@kernel
def _sha256(data: Bytes, starts: Places, ends: Places, chaining: Words, out: Bytes, begin: int, end: int) -> None:
    h, w, v = np.zeros(8 * LANES, U32), np.zeros(64 * LANES, U32), np.empty(8 * LANES, U32)
    digests = np.empty(8 * LANES, U32)
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
                start, size = I64(starts[at + lane]), I64(ends[at + lane]) - I64(starts[at + lane])
                bits = 8 * (size + (BLOCK if keyed else 0))
                _load_padded(data, start, size, block * BLOCK, bits, w, lane)
            _sha_lanes(h, w, v)
            for lane in range(lanes):
                if (I64(ends[at + lane]) - I64(starts[at + lane]) + 8) // BLOCK == block:
                    for k in range(8):
                        digests[k * LANES + lane] = h[k * LANES + lane]
        if keyed:
            for k in range(8):
                for lane in range(LANES):
                    w[k * LANES + lane] = digests[k * LANES + lane]
                    w[(8 + k) * LANES + lane] = U32(0)
                    h[k * LANES + lane] = chaining[8 + k]
            for lane in range(LANES):
                w[8 * LANES + lane], w[15 * LANES + lane] = U32(0x80000000), U32(8 * (BLOCK + 32))
            _sha_lanes(h, w, v)
            digests[:] = h
        for i in range(8 * LANES):
            digests[i] = _swapped(digests[i])
        for lane in range(lanes):
            _write(digests, lane, out[at + lane])


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
                low, high = _word(record, 8 * k), _word(record, 8 * k + 4)
                word = U64(U64(low) | U64(U64(high) << U64(32)))
            else:
                word = U64(U64(record.size & 0xFF) << U64(56))
                for i in range(8 * whole, record.size):
                    word = U64(word | U64(U64(record[i]) << U64(8 * (i - 8 * whole))))
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


@quiet
def blake3_records(data: Bytes, starts: Places, ends: Places, key: Words, mode: int, out: Bytes, max_threads: int) -> None:
    """out[i] = the first bytes of BLAKE3's output for record i."""
    data, starts, ends, key = _read_only(data), _places(starts), _places(ends), key.copy()
    _over_threads(
        starts, ends, max_threads, lambda begin, end: _blake3(data, starts, ends, key, U32(mode), out, begin, end)
    )


@quiet
def sha256_records(data: Bytes, starts: Places, ends: Places, chaining: Words, out: Bytes, max_threads: int) -> None:
    """out[i] = the first bytes of SHA-256 or, with a second chaining value, of HMAC."""
    data, starts, ends, chaining = _read_only(data), _places(starts), _places(ends), chaining.reshape(-1).copy()
    _over_threads(
        starts, ends, max_threads, lambda begin, end: _sha256(data, starts, ends, chaining, out, begin, end)
    )


@quiet
def siphash24_records(data: Bytes, starts: Places, ends: Places, key: Words, out: Bytes, max_threads: int) -> None:
    """out[i] = SipHash-2-4 of as many bytes as out has columns."""
    data, starts, ends, key = _read_only(data), _places(starts), _places(ends), key.copy()
    _over_threads(starts, ends, max_threads, lambda begin, end: _siphash(data, starts, ends, key, out, begin, end))
