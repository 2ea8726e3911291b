// Digests of many records, compiled once per instruction set. docs/hashing-records.md says what they compute.
// A record's blocks wait for each other, so each takes a lane of its own; a lane that is done takes the next record.
#include <cstring>

#include "aisec_fast/hashing_math.hpp"
#include "kernels/exact_load.hpp"
#include "kernels/families.hpp"
#include "kernels/lanes.hpp"
#include "kernels/sha256.hpp"
#include "kernels/siphash.hpp"
#include "kernels/transpose.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

struct Record {
  const unsigned char* bytes;
  std::size_t size;
};

inline Record record_at(const Records& records, std::size_t i) {
  std::uint64_t start, end;
  if (records.wide) {
    start = static_cast<const std::uint64_t*>(records.starts)[i];
    end = static_cast<const std::uint64_t*>(records.ends)[i];
  } else {
    start = static_cast<const std::uint32_t*>(records.starts)[i];
    end = static_cast<const std::uint32_t*>(records.ends)[i];
  }
  return {records.data + start, end - start};
}

// The usual sizes without a call of memcpy.
inline void write_digest(const Records& records, std::size_t i, const void* digest) {
  unsigned char* const out = records.out + i * records.size;
  if (records.size == 32)
    std::memcpy(out, digest, 32);
  else if (records.size == 16)
    std::memcpy(out, digest, 16);
  else
    std::memcpy(out, digest, records.size);
}

// Columns of eight or sixteen words to rows: the digests of all lanes.
template <int words>
inline void digest_rows(unsigned char (&rows)[lanes][4 * words], const Lanes* columns) {
  constexpr int part = lanes < words ? lanes : words;
  for (int word = 0; word < words; word += part) {
    Lanes row[lanes];
    for (int i = 0; i < lanes; ++i) row[i] = i < part ? columns[word + i] : Lanes{};
    transpose(row);
    for (int lane = 0; lane < lanes; ++lane) std::memcpy(rows[lane] + 4 * word, &row[lane], 4 * part);
  }
}

// Columns of the message words of a block of each lane, of which no lane has more than `most` bytes.
inline void message_columns(Lanes (&message)[16], const Block (&blocks)[lanes], std::size_t most) {
  for (int part = 0; part < 16 / lanes; ++part) {
    Lanes row[lanes];
    if (static_cast<std::size_t>(part) * AISEC_WIDTH < most) {
      for (int lane = 0; lane < lanes; ++lane) row[lane] = blocks[lane].part[part];
      transpose(row);
    } else {
      for (Lanes& zeros : row) zeros = Lanes{};
    }
    for (int i = 0; i < lanes; ++i) message[part * lanes + i] = row[i];
  }
}

// --- BLAKE3
// -----------------------------------------------------------------------------------------------------------

class Blake3Lanes {
 public:
  Blake3Lanes(const Records& records, const std::uint32_t* key, std::uint32_t mode)
      : records_(records), key_(key), mode_(mode) {}

  // One or two blocks of output, as the digests' size says, of the records of one block that are listed.
  void short_records(const std::size_t (&index)[lanes], std::size_t count) const {
    Block blocks[lanes];
    alignas(AISEC_WIDTH) std::uint32_t sizes[lanes];
    std::size_t most = 0;
    for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane) {
      const Record record = record_at(records_, index[lane < count ? lane : 0]);
      load_block(blocks[lane], record.bytes, record.size);
      sizes[lane] = static_cast<std::uint32_t>(record.size);
      most = record.size > most ? record.size : most;
    }
    Lanes chaining[8], message[16], v[16], length;
    start(chaining);
    message_columns(message, blocks, most);
    std::memcpy(&length, sizes, sizeof length);
    blake3_compress<Rotation>(v, chaining, message, Lanes{}, Lanes{}, length,
                              Lanes{} + (mode_ | chunk_start | chunk_end | root_node));
    write(v, chaining, index, (std::size_t{1} << count) - 1);
  }

  // A record of more than one block.
  void add(std::size_t i) {
    while (busy_ == all) step();
    const auto lane = static_cast<std::size_t>(__builtin_ctzll(~busy_));
    index_[lane] = i;
    rest_[lane] = record_at(records_, i);
    if (busy_ == 0) start(chaining_);
    for (int word = 0; word < 8; ++word) chaining_[word][lane] = key_[word];
    flags_[lane] = mode_ | chunk_start;
    busy_ |= std::size_t{1} << lane;
  }

  void finish() {
    while (busy_ != 0) step();
  }

 private:
  static constexpr std::size_t all = (std::size_t{1} << lanes) - 1;

  void start(Lanes (&chaining)[8]) const {
    for (int word = 0; word < 8; ++word) chaining[word] = Lanes{} + key_[word];
  }

  // A block of every lane; lanes without a record do as if they had an empty one.
  void step() {
    Block blocks[lanes];
    alignas(AISEC_WIDTH) std::uint32_t sizes[lanes], flags[lanes];
    std::size_t done = 0;
    for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane) {
      const bool busy = (busy_ >> lane & 1) != 0;
      Record& rest = rest_[lane];
      const bool last = rest.size <= blake3_block_bytes;
      const std::size_t size = !busy ? 0 : last ? rest.size : blake3_block_bytes;
      load_block(blocks[lane], rest.bytes, size);
      sizes[lane] = static_cast<std::uint32_t>(size);
      flags[lane] = flags_[lane] | (last ? chunk_end | root_node : 0u);
      if (busy && last) done |= std::size_t{1} << lane;
      rest.bytes += size;
      rest.size -= size;
      flags_[lane] = mode_;
    }
    Lanes message[16], v[16], length, flag;
    message_columns(message, blocks, blake3_block_bytes);
    std::memcpy(&length, sizes, sizeof length);
    std::memcpy(&flag, flags, sizeof flag);
    blake3_compress<Rotation>(v, chaining_, message, Lanes{}, Lanes{}, length, flag);
    if (done != 0) write(v, chaining_, index_, done);
    blake3_fold(chaining_, v);
    busy_ &= ~done;
  }

  void write(Lanes (&v)[16], const Lanes (&chaining)[8], const std::size_t (&index)[lanes], std::size_t which) const {
    if (records_.size <= 32) {
      Lanes digest[8];
      blake3_fold(digest, v);
      write_rows<8>(digest, index, which);
    } else {
      Lanes digest[16];
      for (int i = 0; i < 16; ++i) digest[i] = v[i];
      blake3_fold_stream(digest, chaining);
      write_rows<16>(digest, index, which);
    }
  }

  template <int words>
  void write_rows(const Lanes* digest, const std::size_t (&index)[lanes], std::size_t which) const {
    alignas(AISEC_WIDTH) unsigned char rows[lanes][4 * words];
    digest_rows<words>(rows, digest);
    for (; which != 0; which &= which - 1) {
      const int lane = __builtin_ctzll(which);
      write_digest(records_, index[lane], rows[lane]);
    }
  }

  const Records& records_;
  const std::uint32_t* key_;
  std::uint32_t mode_;
  std::size_t busy_ = 0;
  std::size_t index_[lanes] = {};
  Record rest_[lanes] = {};
  std::uint32_t flags_[lanes] = {};
  Lanes chaining_[8] = {};
};

std::size_t blake3_records(const Records& records, const std::uint32_t* key, std::uint32_t mode, std::size_t first,
                           std::size_t last) {
  Blake3Lanes hasher(records, key, mode);
  std::size_t index[lanes], waiting = 0, left = 0;
  for (std::size_t i = first; i < last; ++i) {
    const std::size_t size = record_at(records, i).size;
    if (size <= blake3_block_bytes) {
      index[waiting++] = i;
      if (waiting < std::size_t{lanes}) continue;
      hasher.short_records(index, waiting);
      waiting = 0;
    } else if (size <= blake3_chunk_bytes) {
      hasher.add(i);
    } else {
      ++left;
    }
  }
  if (waiting > 0) {
    for (std::size_t lane = waiting; lane < std::size_t{lanes}; ++lane) index[lane] = index[0];
    hasher.short_records(index, waiting);
  }
  hasher.finish();
  return left;
}

// --- SHA-256 and HMAC
// -------------------------------------------------------------------------------------------------

constexpr std::size_t sha256_short = 55;  // bytes that fit into one block with their padding
constexpr std::size_t hmac_digest_bits = 8 * (sha256_block_bytes + 32);

struct ShaRecords {
  const Records& records;
  const std::uint32_t* inner;
  const std::uint32_t* outer;

  // What the length field of a record states.
  std::uint64_t bits(std::size_t size) const {
    return 8 * (std::uint64_t{size} + (outer != nullptr ? sha256_block_bytes : 0));
  }
};

// 0x80 at byte 64: windows that begin before it are padding.
alignas(64) constexpr unsigned char sha256_padding[128] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,   0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80};

// The records of one block each, lanes without one repeat the first.
void short_records_lanes(const ShaRecords& hash, const std::size_t* index, std::size_t count) {
  Block blocks[lanes];
  alignas(AISEC_WIDTH) std::uint32_t bits[lanes];
  for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane) {
    const Record record = record_at(hash.records, index[lane < count ? lane : 0]);
    load_block(blocks[lane], record.bytes, record.size);
    Block padding;
    std::memcpy(&padding, sha256_padding + 64 - record.size, sizeof padding);
    for (int part = 0; part < 16 / lanes; ++part) blocks[lane].part[part] |= padding.part[part];
    bits[lane] = static_cast<std::uint32_t>(hash.bits(record.size));
  }
  Lanes state[8], w[16];
  message_columns(w, blocks, sha256_block_bytes);
  for (Lanes& words : w) words = byte_swapped(words);
  std::memcpy(&w[15], bits, sizeof bits);
  for (int i = 0; i < 8; ++i) state[i] = Lanes{} + hash.inner[i];
  sha256_compress<Rotation>(state, w);
  if (hash.outer != nullptr) {
    for (int i = 0; i < 8; ++i) {
      w[i] = state[i];
      w[i + 8] = Lanes{};
      state[i] = Lanes{} + hash.outer[i];
    }
    w[8] = Lanes{} + 0x80000000u;
    w[15] = Lanes{} + std::uint32_t{hmac_digest_bits};
    sha256_compress<Rotation>(state, w);
  }
  for (Lanes& words : state) words = byte_swapped(words);
  alignas(AISEC_WIDTH) unsigned char rows[lanes][32];
  digest_rows<8>(rows, state);
  for (std::size_t lane = 0; lane < count; ++lane) write_digest(hash.records, index[lane], rows[lane]);
}

#if defined(AISEC_HAS_SHA)
template <int streams>
AISEC_SHA void short_records_together(const ShaRecords& hash, const std::size_t* index) {
  __m128i w[streams][4];
  ShaHalves state[streams];
  for (int s = 0; s < streams; ++s) {
    const Record record = record_at(hash.records, index[s]);
    load_quarters(w[s], record.bytes, record.size);
    const unsigned char* const padding = sha256_padding + 64 - record.size;
    for (int i = 0; i < 4; ++i) w[s][i] = sha_swapped(_mm_or_si128(w[s][i], quarter_at(padding + 16 * i)));
    w[s][3] = _mm_insert_epi32(w[s][3], static_cast<int>(hash.bits(record.size)), 3);
    state[s] = sha_halves(hash.inner);
  }
  sha256_compress_x86<streams>(state, w);
  if (hash.outer != nullptr) {
    for (int s = 0; s < streams; ++s) {
      sha_words(state[s], w[s][0], w[s][1]);
      w[s][2] = _mm_set_epi32(0, 0, 0, static_cast<int>(0x80000000u));
      w[s][3] = _mm_set_epi32(int{hmac_digest_bits}, 0, 0, 0);
      state[s] = sha_halves(hash.outer);
    }
    sha256_compress_x86<streams>(state, w);
  }
  for (int s = 0; s < streams; ++s) {
    __m128i digest[2];
    sha_words(state[s], digest[0], digest[1]);
    digest[0] = sha_swapped(digest[0]);
    digest[1] = sha_swapped(digest[1]);
    write_digest(hash.records, index[s], digest);
  }
}

void short_records_x86(const ShaRecords& hash, const std::size_t* index, std::size_t count) {
  if (count == sha_streams) return short_records_together<sha_streams>(hash, index);
  for (std::size_t i = 0; i < count; ++i) short_records_together<1>(hash, index + i);
}
#endif

// Longer records, side by side.
template <std::size_t most>
class ShaLanes {
 public:
  using Streams = void (*)(std::uint32_t* const*, const unsigned char* const*, std::size_t, std::size_t);

  ShaLanes(const ShaRecords& hash, Streams streams) : hash_(hash), streams_(streams) {}

  void add(std::size_t i) {
    while (count_ == most) step();
    Lane& lane = lanes_[count_++];
    const Record record = record_at(hash_.records, i);
    lane.index = i;
    lane.size = record.size;
    lane.next = record.bytes;
    lane.blocks = record.size / sha256_block_bytes;
    lane.stage = Stage::body;
    std::memcpy(lane.state, hash_.inner, sizeof lane.state);
    if (lane.blocks == 0) advance(lane);
  }

  void finish() {
    while (count_ > 0) step();
  }

 private:
  enum class Stage { body, tail, outer, done };
  struct Lane {
    std::uint32_t state[8];
    const unsigned char* next;
    std::size_t blocks;  // to absorb, from `next` on
    std::size_t index, size;
    Stage stage;
    unsigned char tail[2 * sha256_block_bytes];
  };

  // As many blocks as every lane has left of its stage.
  void step() {
    std::uint32_t* states[most];
    const unsigned char* data[most];
    std::size_t blocks = lanes_[0].blocks;
    for (std::size_t i = 0; i < count_; ++i) {
      states[i] = lanes_[i].state;
      data[i] = lanes_[i].next;
      blocks = lanes_[i].blocks < blocks ? lanes_[i].blocks : blocks;
    }
    streams_(states, data, blocks, count_);
    for (std::size_t i = 0; i < count_; ++i) {
      Lane& lane = lanes_[i];
      lane.next += blocks * sha256_block_bytes;
      lane.blocks -= blocks;
      if (lane.blocks == 0) advance(lane);
    }
    for (std::size_t i = count_; i-- > 0;)
      if (lanes_[i].stage == Stage::done) move(lanes_[--count_], lanes_[i]);
  }

  static void move(const Lane& from, Lane& to) {
    if (&from == &to) return;
    const bool inside = from.next >= from.tail && from.next < from.tail + sizeof from.tail;
    to = from;
    if (inside) to.next = to.tail + (from.next - from.tail);
  }

  void advance(Lane& lane) {
    if (lane.stage == Stage::body) {
      lane.stage = Stage::tail;
      const std::size_t rest = lane.size % sha256_block_bytes;
      pad(lane, lane.next, rest, hash_.bits(lane.size));
      return;
    }
    unsigned char digest[32];
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t word = byte_swapped(lane.state[i]);
      std::memcpy(digest + 4 * i, &word, sizeof word);
    }
    if (lane.stage == Stage::tail && hash_.outer != nullptr) {
      lane.stage = Stage::outer;
      std::memcpy(lane.state, hash_.outer, sizeof lane.state);
      pad(lane, digest, sizeof digest, hmac_digest_bits);
    } else {
      lane.stage = Stage::done;
      write_digest(hash_.records, lane.index, digest);
    }
  }

  // The last `size` bytes, fewer than a block, and the padding of a message of `bits` bits.
  static void pad(Lane& lane, const unsigned char* bytes, std::size_t size, std::uint64_t bits) {
    std::memset(lane.tail, 0, sizeof lane.tail);
    if (size > 0) std::memcpy(lane.tail, bytes, size);
    lane.tail[size] = 0x80;
    lane.blocks = size <= sha256_short ? 1 : 2;
    lane.next = lane.tail;
    const std::uint64_t length = __builtin_bswap64(bits);
    std::memcpy(lane.tail + lane.blocks * sha256_block_bytes - sizeof length, &length, sizeof length);
  }

  const ShaRecords& hash_;
  Streams streams_;
  Lane lanes_[most];
  std::size_t count_ = 0;
};

template <std::size_t most>
inline void sha256_of(const ShaRecords& hash, std::size_t first, std::size_t last,
                      void (*short_records)(const ShaRecords&, const std::size_t*, std::size_t),
                      typename ShaLanes<most>::Streams streams) {
  ShaLanes<most> hasher(hash, streams);
  std::size_t index[most], waiting = 0;
  for (std::size_t i = first; i < last; ++i) {
    if (record_at(hash.records, i).size > sha256_short) {
      hasher.add(i);
      continue;
    }
    index[waiting++] = i;
    if (waiting < most) continue;
    short_records(hash, index, waiting);
    waiting = 0;
  }
  if (waiting > 0) short_records(hash, index, waiting);
  hasher.finish();
}

void sha256_records_lanes(const Records& records, const std::uint32_t* inner, const std::uint32_t* outer,
                          std::size_t first, std::size_t last) {
  const ShaRecords hash{records, inner, outer};
  sha256_of<std::size_t{lanes}>(hash, first, last, short_records_lanes, sha256_streams_lanes);
}

#if defined(AISEC_HAS_SHA)
void sha256_records_x86(const Records& records, const std::uint32_t* inner, const std::uint32_t* outer,
                        std::size_t first, std::size_t last) {
  const ShaRecords hash{records, inner, outer};
  sha256_of<sha_streams>(hash, first, last, short_records_x86, sha256_streams_x86);
}
#endif

// --- SipHash
// ----------------------------------------------------------------------------------------------------------

void siphash24_records(const Records& records, const std::uint64_t* key, std::size_t first, std::size_t last) {
  const bool wide = records.size == 16;
  for (std::size_t i = first; i < last; i += sip_records) {
    SipRecord group[sip_records];
    const std::size_t count = last - i < sip_records ? last - i : sip_records;
    for (std::size_t r = 0; r < sip_records; ++r) {
      const Record record = record_at(records, i + (r < count ? r : 0));
      group[r].set(record.bytes, record.size);
    }
    std::uint64_t digests[2][sip_records];
    siphash(group, key, wide, digests);
    unsigned char* const out = records.out + i * records.size;
    for (std::size_t r = 0; r < count; ++r) {
      std::memcpy(out + r * records.size, &digests[0][r], 8);
      if (wide) std::memcpy(out + r * records.size + 8, &digests[1][r], 8);
    }
  }
}

}  // namespace

RecordKernels record_kernels(bool sha_instructions) {
  RecordKernels kernels = {blake3_records, sha256_records_lanes, siphash24_records};
#if defined(AISEC_HAS_SHA)
  if (sha_instructions) kernels.sha256 = sha256_records_x86;
#else
  static_cast<void>(sha_instructions);
#endif
  return kernels;
}

}  // namespace aisec_fast::AISEC_ISA
