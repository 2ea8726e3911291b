"""Hashing kernels for Numba. docs/hashing.md is the contract: states to the bit, however the bytes were split.

BLAKE3 hashes LANES chunks (or parents, or output blocks) at once: a lane becomes a vector element. Large inputs are cut
into subtrees that threads hash on their own; the calling thread merges them.
"""

from __future__ import annotations

from typing import TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, quiet, thread_count
from aisec_fast._reference import hashing as reference

U8: TypeAlias = np.uint8
U32: TypeAlias = np.uint32
I64: TypeAlias = np.int64
Words: TypeAlias = NDArray[np.uint32]
Bytes: TypeAlias = NDArray[np.uint8]
Four: TypeAlias = tuple[U32, U32, U32, U32]
Eight: TypeAlias = tuple[U32, U32, U32, U32, U32, U32, U32, U32]
Block: TypeAlias = tuple[U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32]

CHUNK, BLOCK = reference.CHUNK, reference.BLOCK
CHUNK_START, CHUNK_END = U32(reference.CHUNK_START), U32(reference.CHUNK_END)
PARENT, ROOT = U32(reference.PARENT), U32(reference.ROOT)
IV0, IV1, IV2, IV3 = (U32(word) for word in reference.IV[:4])
K = np.array(reference.K, U32)

# Where the parts of a BLAKE3 state lie.
MODE, BUFFERED, CHUNKS, STACK, BUFFER, STATE = 8, 9, 10, 12, 444, 700

LANES = 2 if getattr(numba.config, "DISABLE_JIT", 0) else 8  # only the compiler makes one vector of them
# Rows of the scratch array, LANES words each: chaining value (and first half of the output), second half of the
# output, message, counter, length and flags of each lane.
SECOND, MESSAGE, COUNTER, LENGTH, FLAGS, ROWS = 8 * LANES, 16 * LANES, 32 * LANES, 34 * LANES, 35 * LANES, 36
SUBTREE = 256  # most chunks hashed as one subtree
FEWEST_SUBTREES = 4  # below 1 MiB threads cost more than they save
NO_ROOTS = np.empty((0, 8), np.uint32)


# --- BLAKE3: compression ----------------------------------------------------------------------------------------------


@inlined
def _rotate_right(x: U32, distance: int) -> U32:
    return U32(U32(x >> U32(distance)) | U32(x << U32(32 - distance)))


@inlined
def _mix(a: U32, b: U32, c: U32, d: U32, x: U32, y: U32) -> Four:
    a = U32(U32(a + b) + x)
    d = _rotate_right(U32(d ^ a), 16)
    c = U32(c + d)
    b = _rotate_right(U32(b ^ c), 12)
    a = U32(U32(a + b) + y)
    d = _rotate_right(U32(d ^ a), 8)
    c = U32(c + d)
    b = _rotate_right(U32(b ^ c), 7)
    return a, b, c, d


@inlined
def _round(v: Block, m: Block) -> Block:
    v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15 = v
    v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m[0], m[1])
    v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m[2], m[3])
    v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m[4], m[5])
    v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m[6], m[7])
    v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m[8], m[9])
    v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m[10], m[11])
    v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m[12], m[13])
    v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m[14], m[15])
    return v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15


@inlined
def _permuted(m: Block) -> Block:
    return m[2], m[6], m[3], m[10], m[7], m[0], m[4], m[13], m[1], m[11], m[12], m[5], m[9], m[14], m[15], m[8]


@inlined
def _eight(s: Words, at: int) -> Eight:
    return (
        s[at],
        s[at + LANES],
        s[at + 2 * LANES],
        s[at + 3 * LANES],
        s[at + 4 * LANES],
        s[at + 5 * LANES],
        s[at + 6 * LANES],
        s[at + 7 * LANES],
    )


@kernel
def _compress_lanes(s: Words) -> None:
    """The compression function on every column of the scratch array, in place.

    One column would cost no less than a vector of them, and a second copy of this code would cost seconds to compile.
    """
    for lane in range(LANES):
        h = _eight(s, lane)
        m = _eight(s, MESSAGE + lane) + _eight(s, MESSAGE + 8 * LANES + lane)
        low, high, length, flags = s[COUNTER + lane], s[COUNTER + LANES + lane], s[LENGTH + lane], s[FLAGS + lane]
        v = (h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], IV0, IV1, IV2, IV3, low, high, length, flags)
        # Not a loop: LLVM would not unroll passes of this length, and then not vectorise the loop over lanes.
        v = _round(v, m)
        m = _permuted(m)
        v = _round(v, m)
        m = _permuted(m)
        v = _round(v, m)
        m = _permuted(m)
        v = _round(v, m)
        m = _permuted(m)
        v = _round(v, m)
        m = _permuted(m)
        v = _round(v, m)
        m = _permuted(m)
        v = _round(v, m)
        s[lane], s[lane + LANES] = U32(v[0] ^ v[8]), U32(v[1] ^ v[9])
        s[lane + 2 * LANES], s[lane + 3 * LANES] = U32(v[2] ^ v[10]), U32(v[3] ^ v[11])
        s[lane + 4 * LANES], s[lane + 5 * LANES] = U32(v[4] ^ v[12]), U32(v[5] ^ v[13])
        s[lane + 6 * LANES], s[lane + 7 * LANES] = U32(v[6] ^ v[14]), U32(v[7] ^ v[15])
        at = SECOND + lane
        s[at], s[at + LANES] = U32(v[8] ^ h[0]), U32(v[9] ^ h[1])
        s[at + 2 * LANES], s[at + 3 * LANES] = U32(v[10] ^ h[2]), U32(v[11] ^ h[3])
        s[at + 4 * LANES], s[at + 5 * LANES] = U32(v[12] ^ h[4]), U32(v[13] ^ h[5])
        s[at + 6 * LANES], s[at + 7 * LANES] = U32(v[14] ^ h[6]), U32(v[15] ^ h[7])


@kernel
def _compress(s: Words, length: U32, flags: U32) -> None:
    """The same, where all lanes have one length and the same flags."""
    for lane in range(LANES):
        s[LENGTH + lane], s[FLAGS + lane] = length, flags
    _compress_lanes(s)


@inlined
def _word(data: Bytes, at: int) -> U32:
    """The little-endian word at a byte position; LLVM makes it one load if it sees that `at` is not negative."""
    low = U32(U32(data[at]) | U32(U32(data[at + 1]) << U32(8)))
    return U32(low | U32(U32(U32(data[at + 2]) << U32(16)) | U32(U32(data[at + 3]) << U32(24))))


@inlined
def _set_counter(s: Words, lane: int, counter: int) -> None:
    s[COUNTER + lane] = U32(counter & 0xFFFFFFFF)
    s[COUNTER + LANES + lane] = U32(counter >> 32)


@inlined
def _set_chaining(s: Words, lanes: int, state: Words) -> None:
    """Start from the key words of a state."""
    for k in range(8):
        for lane in range(lanes):
            s[k * LANES + lane] = state[k]


# --- BLAKE3: subtrees -------------------------------------------------------------------------------------------------


@kernel
def _subtree(state: Words, data: Bytes, start: int, count: int, first: int, s: Words, values: Words) -> None:
    """values[0] = chaining value of the subtree over `count` whole chunks, a power of two up to SUBTREE.

    They start at byte `start` of data; the first has number `first` in the stream. The rest of values, [SUBTREE, 8], and
    s, the scratch array, are overwritten.
    """
    for at in range(0, count, LANES):
        lanes = min(LANES, count - at)
        _set_chaining(s, lanes, state)
        for lane in range(lanes):
            _set_counter(s, lane, first + at + lane)
        for block in range(CHUNK // BLOCK):
            for lane in range(lanes):
                position = start + (at + lane) * CHUNK + block * BLOCK
                part, column = data[position : position + BLOCK], s[MESSAGE + lane :]
                for k in range(16):
                    column[k * LANES] = _word(part, 4 * k)
            flags = state[MODE]
            if block == 0:
                flags = U32(flags | CHUNK_START)
            if block == CHUNK // BLOCK - 1:
                flags = U32(flags | CHUNK_END)
            _compress(s, U32(BLOCK), flags)
        for lane in range(lanes):
            for k in range(8):
                values[at + lane, k] = s[k * LANES + lane]
    while count > 1:  # a level of parents, in place: each is written over what was read before
        count //= 2
        for at in range(0, count, LANES):
            lanes = min(LANES, count - at)
            _set_chaining(s, lanes, state)
            for lane in range(lanes):
                _set_counter(s, lane, 0)
                for k in range(8):
                    s[MESSAGE + k * LANES + lane] = values[2 * (at + lane), k]
                    s[MESSAGE + (8 + k) * LANES + lane] = values[2 * (at + lane) + 1, k]
            _compress(s, U32(BLOCK), U32(state[MODE] | PARENT))
            for lane in range(lanes):
                for k in range(8):
                    values[at + lane, k] = s[k * LANES + lane]


# --- BLAKE3: the state ------------------------------------------------------------------------------------------------


@inlined
def _chunk_count(state: Words) -> int:
    return I64(I64(state[CHUNKS]) | I64(I64(state[CHUNKS + 1]) << I64(32)))


@inlined
def _entries(chunks: int) -> int:
    """Chaining values on the stack: one for each bit that is set."""
    entries = 0
    while chunks > 0:
        entries += chunks & 1
        chunks >>= 1
    return entries


@inlined
def _parent(state: Words, entry: int, s: Words) -> U32:
    """Column 0 of s becomes the parent of the stack's entry and of the chaining value there; returns its flags."""
    for k in range(8):
        s[MESSAGE + k * LANES] = state[STACK + 8 * entry + k]
        s[MESSAGE + (8 + k) * LANES] = s[k * LANES]
        s[k * LANES] = state[k]
    _set_counter(s, 0, 0)
    return U32(state[MODE] | PARENT)


@kernel
def _push(state: Words, count: int, s: Words) -> None:
    """Put the chaining value in column 0 of s, of a subtree of `count` chunks, on the stack; another chunk follows.

    What is a whole subtree now is merged.
    """
    chunks = _chunk_count(state)
    entry, merges = _entries(chunks), chunks // count
    while merges & 1:
        entry -= 1
        flags = _parent(state, entry, s)
        _compress(s, U32(BLOCK), flags)
        for k in range(8):
            state[STACK + 8 * entry + k] = U32(0)
        merges >>= 1
    for k in range(8):
        state[STACK + 8 * entry + k] = s[k * LANES]
    chunks += count
    state[CHUNKS], state[CHUNKS + 1] = U32(chunks & 0xFFFFFFFF), U32(chunks >> 32)


@kernel
def _last_block(state: Words, s: Words) -> tuple[U32, U32]:
    """Column 0 of s becomes the last block of the chunk in the buffer; returns its length and flags."""
    buffered = I64(state[BUFFERED])
    last = max(0, buffered - 1) // BLOCK
    _set_chaining(s, I64(1), state)
    _set_counter(s, 0, _chunk_count(state))
    flags = U32(state[MODE] | CHUNK_START)
    for block in range(last + 1):
        for k in range(16):
            s[MESSAGE + k * LANES] = state[BUFFER + 16 * block + k]
        if block < last:
            _compress(s, U32(BLOCK), flags)
            flags = state[MODE]
    return U32(buffered - last * BLOCK), U32(flags | CHUNK_END)


@inlined
def _largest_subtree(chunks: int, available: int) -> int:
    """Chunks of the largest subtree that may start at chunk number `chunks`."""
    count = 1
    while count < SUBTREE and 2 * count <= available and chunks & count == 0:
        count *= 2
    return count


@kernel
def _absorb(state: Words, roots: Words, data: Bytes) -> None:
    """Absorb what has the roots, [n, 8], as chaining values of n subtrees of SUBTREE chunks, and then data.

    If there are roots, whole chunks were absorbed before them, and data is not empty.
    """
    size, position, buffered = data.size, 0, I64(state[BUFFERED])
    buffer = state[BUFFER:].view(U8)
    if roots.shape[0] > 0 or buffered + size > CHUNK:
        s, values = np.zeros(ROWS * LANES, U32), np.empty((SUBTREE, 8), U32)
        if buffered > 0:
            position = CHUNK - buffered
            buffer[buffered:] = data[:position]
            state[BUFFERED] = U32(CHUNK)
            length, flags = _last_block(state, s)
            _compress(s, length, flags)
            _push(state, I64(1), s)
            buffer[:] = U8(0)
            buffered = 0
        for i in range(roots.shape[0]):
            for k in range(8):
                s[k * LANES] = roots[i, k]
            _push(state, I64(SUBTREE), s)
        while size - position > CHUNK:
            chunks = _chunk_count(state)
            count = _largest_subtree(chunks, (size - position - 1) // CHUNK)
            _subtree(state, data, position, count, chunks, s, values)
            for k in range(8):
                s[k * LANES] = values[0, k]
            _push(state, count, s)
            position += count * CHUNK
    buffer[buffered : buffered + size - position] = data[position:]
    state[BUFFERED] = U32(buffered + size - position)


@kernel
def _output(state: Words, out: Bytes, block: int, skip: int) -> None:
    """out = output stream from byte 64 block + skip on."""
    s, chaining = np.zeros(ROWS * LANES, U32), np.empty(8, U32)
    length, flags = _last_block(state, s)
    entry = _entries(_chunk_count(state))
    while entry > 0:
        _compress(s, length, flags)
        entry -= 1
        flags = _parent(state, entry, s)
        length = U32(BLOCK)
    for k in range(8):
        chaining[k] = s[k * LANES]
        for lane in range(1, LANES):
            s[MESSAGE + k * LANES + lane] = s[MESSAGE + k * LANES]
            s[MESSAGE + (8 + k) * LANES + lane] = s[MESSAGE + (8 + k) * LANES]
    done = 0
    while done < out.size:
        lanes = min(LANES, (skip + out.size - done + BLOCK - 1) // BLOCK)
        _set_chaining(s, lanes, chaining)
        for lane in range(lanes):
            _set_counter(s, lane, block + lane)
        _compress(s, length, U32(flags | ROOT))
        for lane in range(lanes):
            for i in range(skip, min(BLOCK, skip + out.size - done)):
                word = s[(i // 4) * LANES + lane]
                out[done] = U8(U32(word >> U32(8 * (i % 4))) & U32(0xFF))
                done += 1
            skip = 0
        block += lanes


def _read_only(data: Bytes) -> Bytes:
    """The same memory as a read-only array: Numba would compile once more for one that can be written."""
    if data.flags.writeable:
        data = data.view()
        data.flags.writeable = False
    return data


def _absorb_in_threads(state: Words, data: Bytes, threads: int) -> None:
    """Absorb a head that ends where a subtree of SUBTREE chunks begins, such subtrees, and a tail of at least a byte."""
    size = SUBTREE * CHUNK
    absorbed = (int(state[CHUNKS]) | int(state[CHUNKS + 1]) << 32) * CHUNK + int(state[BUFFERED])
    head = -absorbed % size
    count = (data.size - head - 1) // size
    first = (absorbed + head) // CHUNK
    roots = np.empty((count, 8), U32)

    def work(begin: int, end: int) -> None:
        s, values = np.zeros(ROWS * LANES, U32), np.empty((SUBTREE, 8), U32)
        for i in range(begin, end):
            _subtree(state, data, head + i * size, SUBTREE, first + i * SUBTREE, s, values)
            roots[i] = values[0]

    parallel_for(count, threads, work)
    after = state.copy()  # an interrupt leaves the state as it was
    _absorb(after, NO_ROOTS, data[:head])
    _absorb(after, roots, data[head + count * size :])
    state[:] = after


# --- SHA-256 ----------------------------------------------------------------------------------------------------------


@inlined
def _sha_round(a: U32, b: U32, c: U32, d: U32, e: U32, f: U32, g: U32, h: U32, kw: U32) -> tuple[U32, U32]:
    """The new d and h; the other six keep their values and change their names."""
    s1 = U32(U32(_rotate_right(e, 6) ^ _rotate_right(e, 11)) ^ _rotate_right(e, 25))
    choice = U32(g ^ U32(e & U32(f ^ g)))
    t1 = U32(U32(U32(h + s1) + choice) + kw)
    s0 = U32(U32(_rotate_right(a, 2) ^ _rotate_right(a, 13)) ^ _rotate_right(a, 22))
    majority = U32(U32(a & b) | U32(c & U32(a | b)))
    return U32(d + t1), U32(U32(t1 + s0) + majority)


@inlined
def _swapped(x: U32) -> U32:
    """The word with its bytes in the other order."""
    x = U32(U32(x >> U32(16)) | U32(x << U32(16)))
    return U32(U32(U32(x >> U32(8)) & U32(0x00FF00FF)) | U32(U32(x << U32(8)) & U32(0xFF00FF00)))


@kernel
def _sha_compress(chaining: Words, w: Words) -> None:
    """chaining = that after the block in w[:16]; w[16:64] is scratch."""
    for t in range(16, 64):
        x, y = w[t - 15], w[t - 2]
        s0 = U32(U32(_rotate_right(x, 7) ^ _rotate_right(x, 18)) ^ U32(x >> U32(3)))
        s1 = U32(U32(_rotate_right(y, 17) ^ _rotate_right(y, 19)) ^ U32(y >> U32(10)))
        w[t] = U32(U32(w[t - 16] + s0) + U32(w[t - 7] + s1))
    a, b, c, d = chaining[0], chaining[1], chaining[2], chaining[3]
    e, f, g, h = chaining[4], chaining[5], chaining[6], chaining[7]
    for t in range(0, 64, 8):
        d, h = _sha_round(a, b, c, d, e, f, g, h, U32(K[t] + w[t]))
        c, g = _sha_round(h, a, b, c, d, e, f, g, U32(K[t + 1] + w[t + 1]))
        b, f = _sha_round(g, h, a, b, c, d, e, f, U32(K[t + 2] + w[t + 2]))
        a, e = _sha_round(f, g, h, a, b, c, d, e, U32(K[t + 3] + w[t + 3]))
        h, d = _sha_round(e, f, g, h, a, b, c, d, U32(K[t + 4] + w[t + 4]))
        g, c = _sha_round(d, e, f, g, h, a, b, c, U32(K[t + 5] + w[t + 5]))
        f, b = _sha_round(c, d, e, f, g, h, a, b, U32(K[t + 6] + w[t + 6]))
        e, a = _sha_round(b, c, d, e, f, g, h, a, U32(K[t + 7] + w[t + 7]))
    chaining[0], chaining[1] = U32(chaining[0] + a), U32(chaining[1] + b)
    chaining[2], chaining[3] = U32(chaining[2] + c), U32(chaining[3] + d)
    chaining[4], chaining[5] = U32(chaining[4] + e), U32(chaining[5] + f)
    chaining[6], chaining[7] = U32(chaining[6] + g), U32(chaining[7] + h)


@kernel
def _sha_absorb(state: Words, data: Bytes) -> None:
    absorbed = I64(I64(state[8]) | I64(I64(state[9]) << I64(32)))
    size, position = data.size, 0
    buffer, filled = state[10:].view(U8), absorbed % BLOCK
    if filled + size >= BLOCK:
        w = np.empty(64, U32)
        if filled > 0:
            position = BLOCK - filled
            buffer[filled:] = data[:position]
            for t in range(16):
                w[t] = _swapped(state[10 + t])
            _sha_compress(state, w)
            buffer[:] = U8(0)
            filled = 0
        while size - position >= BLOCK:
            part = data[position : position + BLOCK]
            for t in range(16):
                w[t] = _swapped(_word(part, 4 * t))
            _sha_compress(state, w)
            position += BLOCK
    buffer[filled : filled + size - position] = data[position:]
    absorbed = I64(absorbed + size)
    state[8], state[9] = U32(absorbed & 0xFFFFFFFF), U32(absorbed >> 32)


# --- The backend's interface ------------------------------------------------------------------------------------------


@quiet
def blake3_update(state: Words, data: Bytes, max_threads: int) -> None:
    """Absorb data, on up to max_threads threads; 0 stands for as many as the user allows."""
    threads = min(max_threads or thread_count(), thread_count())
    data = _read_only(data)
    if threads > 1 and data.size >= (FEWEST_SUBTREES + 1) * SUBTREE * CHUNK:
        _absorb_in_threads(state, data, threads)
    else:
        _absorb(state, NO_ROOTS, data)


@quiet
def blake3_output(state: Words, out: Bytes, seek: int) -> None:
    """out = the bytes of the output stream from byte seek on."""
    _output(state, out, seek // BLOCK, seek % BLOCK)


@quiet
def sha256_update(state: Words, data: Bytes) -> None:
    """Absorb data."""
    _sha_absorb(state, _read_only(data))


@quiet
def sha256_output(state: Words, out: Bytes) -> None:
    """out, 32 bytes, = the digest: of a padded copy, so that the state stays as it is."""
    absorbed = int(state[8]) | int(state[9]) << 32
    padding = b"\x80" + bytes((55 - absorbed) % BLOCK) + (8 * absorbed).to_bytes(8, "big")
    padded = state.copy()
    _sha_absorb(padded, np.frombuffer(padding, U8))
    out[:] = padded[:8].astype(">u4").view(U8)
