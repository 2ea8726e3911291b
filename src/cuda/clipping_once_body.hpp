#pragma once
// Body of the kernel that clips and adds wide rows in one reading of memory: no launch, no framework, so that
// tests/cuda_on_host runs the same text on a CPU. docs/clipping.md fixes the order of every floating-point sum; compile
// without contraction into fused multiply-add.
//
// Its blocks stay on the GPU and go through the rows together, some rows a step. Most are adders: each has a few blocks
// of 1024 columns of its own, brings their values into shared memory, measures them, and adds them to its columns' sums
// some steps later, when the rows' factors are known. The others tell factors: each takes its turn in adding up what
// all adders measured in a step. An adder's warps have one task each: to bring values is to wait for memory, to ask for
// factors is to wait for a teller, and what waits should hold up nobody.
#include "clipping_body.hpp"
#include "together.hpp"

namespace aisec_fast::cuda {
namespace {

constexpr unsigned most_once_arrays = 64, most_once_slots = 7;
constexpr unsigned most_crooked = 2 * warp_threads;  // columns of an array that is copied value by value
constexpr unsigned once_columns = 2;  // neighbours, of each of an adder's blocks, that one of its threads adds
constexpr unsigned once_workers = norm_block / once_columns;  // threads that measure and add,
constexpr unsigned once_bringers = warp_threads;              // bring values,
constexpr unsigned once_askers = warp_threads;                // and ask for factors
constexpr unsigned once_threads = once_workers + once_bringers + once_askers;

// Rows that an adder of `own` blocks of columns takes in a step: a step's values should be worth its barriers.
template <unsigned own>
constexpr unsigned rows_together = own < 8 ? 8 / own : 1;

// How a call is shared out. `blocks` are all arrays' blocks of 1024 columns, one array after the other.
struct OnceShares {
  std::uint64_t rows;
  unsigned steps, blocks, arrays;
  unsigned adders;          // blocks of the GPU that add, each of which has some blocks of columns
  unsigned tellers;         // blocks of the GPU that tell factors
  unsigned ahead, waiting;  // steps whose values are on their way, and steps whose values wait for factors

  __host__ __device__ unsigned slots() const { return ahead + waiting + 1; }
};

template <class T, class Out>
struct OnceArray {
  const T* data;
  std::int64_t stride;
  std::uint64_t columns;
  unsigned first_block, blocks;
  bool in_sixteens;  // rows begin at multiples of 16 bytes and have as many; others have few columns
  Out* out;
};

// What lies in memory: `sums`, of rows * blocks values, and `factors`, unpublished; and, if somebody asks for them,
// `norms`.
template <class T, class Out>
struct OnceCall {
  OnceShares shares;
  double max_norm;
  double *sums, *factors, *norms;
  OnceArray<T, Out> arrays[most_once_arrays];
};

// A block of columns of an adder.
template <class Out>
struct OncePlace {
  const unsigned char* data;  // of row 0
  std::int64_t stride;        // in bytes
  unsigned bytes;             // of a row
  bool in_sixteens;
  Out* out;
};

// The shared memory of an adder. A unit are 1024 values of a row.
template <unsigned own, class T, class Out>
struct OnceMemory {
  static constexpr unsigned rows = rows_together<own>, units = own * rows;
  static constexpr unsigned unit_bytes = norm_block * sizeof(T);
  // With room behind its values: units side by side lie in different banks.
  static constexpr unsigned pitch = unit_bytes + partial_sums * sizeof(float);

  OncePlace<Out> places[own];
  Arrivals arrivals[most_once_slots];               // a phase of a slot is a step of it
  double factors[2][rows];                          // while slow threads use one, those of the next step are written
  alignas(16) unsigned char values[units * pitch];  // of a step; those of others follow

  static std::uint64_t bytes(const OnceShares& shares) {
    return sizeof(OnceMemory) + std::uint64_t{shares.slots() - 1} * units * pitch;
  }
  __device__ unsigned char* slot(unsigned slot) { return values + slot * (units * pitch); }
};

// Bytes of shared memory that a block needs: a teller has the sums of a step, and a total for each row and array.
template <unsigned own, class T, class Out>
std::uint64_t once_shared_bytes(const OnceShares& shares) {
  const std::uint64_t adder = OnceMemory<own, T, Out>::bytes(shares);
  const std::uint64_t teller = std::uint64_t{rows_together<own>} * (shares.blocks + shares.arrays) * sizeof(double);
  return adder > teller ? adder : teller;
}

template <class T, class Out>
__device__ void find_place(const OnceCall<T, Out>& call, unsigned block, OncePlace<Out>& place) {
  unsigned a = 0;
  while (block >= call.arrays[a].first_block + call.arrays[a].blocks) ++a;
  const OnceArray<T, Out>& array = call.arrays[a];
  const std::uint64_t begin = std::uint64_t{block - array.first_block} * norm_block, left = array.columns - begin;
  place.data = reinterpret_cast<const unsigned char*>(array.data + begin);
  place.stride = array.stride * static_cast<std::int64_t>(sizeof(T));
  place.bytes = static_cast<unsigned>((left < norm_block ? left : norm_block) * sizeof(T));
  place.in_sixteens = array.in_sixteens;
  place.out = array.out + begin;
}

// to[0], to[step], ... = place[0], place[step], ..., min(count, most) of them, as soon as they are published.
template <unsigned most>
__device__ void await(const double* place, unsigned count, unsigned step, double* to) {
  double values[most];
  for (bool all = false; !all;) {
    all = true;
    for (unsigned i = 0; i < most; ++i) values[i] = i < count ? published(place + i * step) : 0.0;
    for (unsigned i = 0; i < most; ++i) all &= !is_unpublished(values[i]);
    if (!all) look_again();
  }
  for (unsigned i = 0; i < most && i < count; ++i) to[i * step] = values[i];
}

// A finite value times 2^-896, exactly: a float's bits, where they belong in a double. A GPU converts with few units,
// and does this with many.
constexpr double once_scale = 0x1p896;
__device__ inline double scaled_down(std::uint32_t float_bits) {
  const auto upper = static_cast<std::uint32_t>(static_cast<std::int32_t>(float_bits) >> 3) & 0x8fffffffu;
  const std::uint64_t bits = std::uint64_t{upper} << 32 | std::uint64_t{float_bits << 29};
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
__device__ inline std::uint32_t float_bits(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
__device__ inline std::uint32_t float_bits(Bfloat16 value) { return std::uint32_t{value.bits} << 16; }

// The sum of squares of values[0], values[16], ..., values[1008], in this order. Its additions wait for one another; so
// what else there is to do, of values some turns later, stands between them.
template <class T>
__device__ double lane_squares(const T* values) {
  constexpr std::uint32_t infinity = 0x7f800000;
  constexpr unsigned at_once = 4, stages = 3, count = norm_block / partial_sums;
  double sum = 0.0, squares[at_once] = {}, wide[at_once] = {};
  std::uint32_t got[at_once] = {}, largest = 0;
  const auto turn = [&](const auto& get) {
    for (unsigned i = 0; i < at_once; ++i) {
      sum += squares[i];
      squares[i] = wide[i] * wide[i];
      wide[i] = scaled_down(got[i]) * once_scale;
      got[i] = get(i);
      largest = max(largest, got[i]);
    }
  };
  for (unsigned begin = 0; begin < count; begin += at_once)
    turn([&](unsigned i) { return float_bits(values[(begin + i) * partial_sums]) & 0x7fffffffu; });
  for (unsigned stage = 0; stage < stages; ++stage) turn([](unsigned) { return 0u; });
  if (largest < infinity) return sum;
  sum = 0.0;
  for (unsigned i = 0; i < count; ++i) sum += widen(values[i * partial_sums]) * widen(values[i * partial_sums]);
  return sum;
}

// An adder's work.
template <unsigned own, class T, class Out>
__device__ void add_once(const OnceCall<T, Out>& call) {
  using Memory = OnceMemory<own, T, Out>;
  struct alignas(once_columns * sizeof(T)) Columns {
    T value[once_columns];
  };
  constexpr unsigned rows = Memory::rows, units = Memory::units, pitch = Memory::pitch;
  constexpr unsigned measuring = units * partial_sums;  // threads
  static_assert(measuring <= once_workers);
  const OnceShares& shares = call.shares;
  Memory& memory = *reinterpret_cast<Memory*>(dynamic_shared());
  const unsigned thread = threadIdx.x, first = blockIdx.x * own, slots = shares.slots();
  const unsigned here = shares.blocks - first < own ? shares.blocks - first : own;
  if (thread < here) find_place(call, first + thread, memory.places[thread]);
  if (thread < slots) prepare(memory.arrivals[thread]);
  __syncthreads();  // the places are there, and arrivals can be announced
  // What lies behind a row's end stays zero.
  for (unsigned unit = 0; unit < slots * units; ++unit) {
    if (unit % own >= here) continue;
    T* const values = reinterpret_cast<T*>(memory.values + unit * pitch);
    for (unsigned i = memory.places[unit % own].bytes / sizeof(T) + thread; i < norm_block; i += once_threads)
      values[i] = T{};
  }

  const bool works = thread < once_workers, brings = !works && thread < once_workers + once_bringers;
  bool crooked = false;
  for (unsigned k = 0; k < here; ++k) crooked |= !memory.places[k].in_sixteens;
  // By one warp, of which each thread brings a unit. What it copies by itself is there before the rest is announced.
  const auto bring_rows = [&](unsigned step, unsigned slot) {
    static_assert(units <= warp_threads);
    const unsigned lane = thread % warp_threads;
    const auto with_unit = [&](unsigned unit, const auto& use) {
      const std::uint64_t row = std::uint64_t{step} * rows + unit / own;
      if (unit >= units || unit % own >= here || row >= shares.rows) return;
      const OncePlace<Out>& place = memory.places[unit % own];
      use(place, place.data + static_cast<std::int64_t>(row) * place.stride, memory.slot(slot) + unit * pitch);
    };
    constexpr unsigned at_once = 4, turns = most_crooked / warp_threads;
    for (unsigned begin = 0; crooked && begin < units; begin += at_once) {
      T values[at_once][turns];
      const auto for_crooked = [&](const auto& use) {
        for (unsigned u = 0; u < at_once; ++u)
          with_unit(begin + u, [&](const OncePlace<Out>& place, const unsigned char* from, unsigned char* to) {
            for (unsigned i = 0; !place.in_sixteens && i < turns; ++i)
              if (const unsigned at = lane + i * warp_threads; at < place.bytes / sizeof(T))
                use(values[u][i], reinterpret_cast<const T*>(from) + at, reinterpret_cast<T*>(to) + at);
          });
      };
      for_crooked([](T& value, const T* from, T*) { value = *from; });  // all are on their way at once
      for_crooked([](T& value, const T*, T* to) { *to = value; });
    }
    unsigned bytes = 0;
    with_unit(lane, [&](const OncePlace<Out>& place, const unsigned char*, unsigned char*) {
      bytes = place.in_sixteens ? place.bytes : 0;
    });
    for (unsigned half = warp_threads / 2; half > 0; half /= 2) bytes += __shfl_xor_sync(~0u, bytes, half);
    __syncwarp();  // all have copied theirs
    if (lane == 0) announce(memory.arrivals[slot], bytes);
    __syncwarp();  // it is announced
    with_unit(lane, [&](const OncePlace<Out>& place, const unsigned char* from, unsigned char* to) {
      if (place.in_sixteens) bring(to, from, place.bytes, memory.arrivals[slot]);
    });
  };
  const auto measure = [&](unsigned step, unsigned slot) {
    const Team team;
    const unsigned unit = thread / partial_sums, k = unit % own;
    const std::uint64_t row = std::uint64_t{step} * rows + unit / own;
    if (k >= here || row >= shares.rows) return;
    const T* const values = reinterpret_cast<const T*>(memory.slot(slot) + unit * pitch) + team.lane;
    const double sum = team.fold(lane_squares(values));
    if (team.lane == 0) publish(&call.sums[row * shares.blocks + first + k], sum);
  };
  double totals[own][once_columns] = {};
  const auto add = [&](unsigned slot, const double (&factors)[rows]) {
    for (unsigned r = 0; r < rows; ++r) {
      const double factor = factors[r] * once_scale;  // so are products rounded as those of values and factors
      if (factor == 0.0) continue;                    // nor is anything that is not finite added
      Columns values[own];
      for (unsigned k = 0; k < own; ++k)
        values[k] = reinterpret_cast<const Columns*>(memory.slot(slot) + (r * own + k) * pitch)[thread];
      for (unsigned k = 0; k < own; ++k)
        for (unsigned c = 0; c < once_columns; ++c)
          totals[k][c] += factor * scaled_down(float_bits(values[k].value[c]));
    }
  };
  // The factors of the rows that are added in a step.
  const auto ask = [&](unsigned step) {
    const unsigned r = thread - once_workers - once_bringers, added = step - shares.waiting;
    if (r >= rows || step < shares.waiting || added >= shares.steps) return;
    const std::uint64_t row = std::uint64_t{added} * rows + r;
    double factor = 0.0;
    if (row < shares.rows) await<1>(&call.factors[row], 1, 1, &factor);
    memory.factors[step % 2][r] = factor;
  };
  const auto work = [&](unsigned step, unsigned now, unsigned oldest) {
    if (step < shares.steps && thread < measuring) {
      wait_for_arrivals(memory.arrivals[now], step / slots);
      measure(step, now);
    }
    if (step >= shares.waiting) add(oldest, memory.factors[step % 2]);
  };

  for (unsigned step = 0; brings && step < shares.ahead; ++step) bring_rows(step, step);
  unsigned now = 0, next = shares.ahead, oldest = slots - shares.waiting;  // slots; the last wraps to 0
  const auto turn = [&](unsigned& slot) { slot = slot + 1 < slots ? slot + 1 : 0; };
  for (unsigned step = 0; step < shares.steps + shares.waiting; ++step) {
    __syncthreads();  // the step's factors are there; all have added what the next slot held
    if (works)
      work(step, now, oldest);
    else if (brings)
      bring_rows(step + shares.ahead, next);
    else
      ask(step + 1);
    turn(now), turn(next), turn(oldest);
  }
  if (!works) return;

  for (unsigned k = 0; k < own; ++k)
    for (unsigned c = 0; k < here && c < once_columns; ++c) {
      const unsigned column = thread * once_columns + c;
      if (column * sizeof(T) < memory.places[k].bytes) memory.places[k].out[column] = static_cast<Out>(totals[k][c]);
    }
}

// A teller's work.
template <unsigned own, class T, class Out>
__device__ void tell_factors(const OnceCall<T, Out>& call) {
  constexpr unsigned most_rows = rows_together<own>, teams = once_threads / partial_sums;
  const OnceShares& shares = call.shares;
  const Team team;
  const unsigned thread = threadIdx.x;
  double* const sums = reinterpret_cast<double*>(dynamic_shared());
  double* const totals = sums + most_rows * shares.blocks;
  for (unsigned step = blockIdx.x - shares.adders; step < shares.steps; step += shares.tellers) {
    const std::uint64_t begin = std::uint64_t{step} * most_rows, left = shares.rows - begin;
    const unsigned rows = left < most_rows ? static_cast<unsigned>(left) : most_rows;
    constexpr unsigned at_once = 4;
    const unsigned count = rows * shares.blocks;
    for (unsigned i = thread; i < count; i += at_once * once_threads)
      await<at_once>(&call.sums[begin * shares.blocks + i], (count - i - 1) / once_threads + 1, once_threads, &sums[i]);
    __syncthreads();  // they are here, and the totals of the step before have been read
    for (unsigned item = thread / partial_sums; item < rows * shares.arrays; item += teams) {
      const OnceArray<T, Out>& array = call.arrays[item % shares.arrays];
      const double* const row = sums + item / shares.arrays * shares.blocks + array.first_block;
      double total = 0.0;
      for_lane_values(
          team.lane, array.blocks, [=](unsigned i) { return row[i]; }, 0.0, [&](double sum) { total += sum; });
      total = team.fold(total);
      if (team.lane == 0) totals[item] = total;
    }
    __syncthreads();  // the arrays' totals are there
    if (thread < rows) {
      double total = 0.0;
      for (unsigned a = 0; a < shares.arrays; ++a) total += totals[thread * shares.arrays + a];
      const double norm = sqrt(total);
      if (call.norms != nullptr) call.norms[begin + thread] = norm;
      publish(&call.factors[begin + thread], clip_factor(norm, call.max_norm));
    }
  }
}

template <unsigned own, class T, class Out>
__device__ void clip_and_sum_once(const OnceCall<T, Out>& call) {
  if (blockIdx.x < call.shares.adders)
    add_once<own>(call);
  else
    tell_factors<own>(call);
}

}  // namespace
}  // namespace aisec_fast::cuda
