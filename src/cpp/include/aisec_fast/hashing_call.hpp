#pragma once
// What Python hands to a hash function, checked: shared by _core and _cuda. The messages name the argument.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/hashing_state.hpp"

namespace aisec_fast {

inline const ArrayView& one_dimensional(const ArrayView& view) {
  if (view.dimensions() != 1)
    throw py::value_error(view.name() + " has " + std::to_string(view.dimensions()) + " dimensions, expected 1");
  return view.contiguous();
}

// The words of a hasher's state, in host memory.
inline std::uint32_t* state_words(const ArrayView& state, std::size_t words) {
  one_dimensional(state.on_device(dlpack::on_cpu).of_type(DType::uint32)).writable().of_size(words);
  if (reinterpret_cast<std::uintptr_t>(state.data<void>()) % alignof(std::uint32_t) != 0)
    throw py::value_error("state is not aligned to its item size");
  return state.data<std::uint32_t>();
}

inline std::uint32_t* blake3_words(const ArrayView& state) {
  std::uint32_t* words = state_words(state, blake3_state_words);
  if (!Blake3State(words).valid())
    throw py::value_error("state holds no BLAKE3 state (docs/hashing.md has its layout)");
  return words;
}

inline unsigned char* output_bytes(const ArrayView& out) {
  return one_dimensional(out.on_device(dlpack::on_cpu).of_type(DType::uint8)).writable().data<unsigned char>();
}

// An int of Python that must lie in 0 to `most`.
inline std::uint64_t whole_number(const py::int_& value, const char* name, std::uint64_t most) {
  const unsigned long long number = PyLong_AsUnsignedLongLong(value.ptr());
  const bool outside = PyErr_Occurred() != nullptr;
  PyErr_Clear();
  if (outside || number > most)
    throw py::value_error(std::string(name) + " is " + std::string(py::str(value)) + ", expected 0 to " +
                          std::to_string(most));
  return number;
}

inline std::size_t thread_limit(const py::int_& max_threads) {
  return whole_number(max_threads, "max_threads", std::numeric_limits<std::int64_t>::max());
}

// The stream has 2^64 - 1 bytes.
inline std::uint64_t stream_position(const py::int_& seek, std::size_t size) {
  return whole_number(seek, "seek", std::numeric_limits<std::uint64_t>::max() - size);
}

// A hash of more than 2^64 - 1 bytes is not defined.
inline void require_room(const Blake3State& state, std::size_t size) {
  if (size / blake3_chunk_bytes + 1 >= blake3_most_chunks - state.chunks())
    throw std::overflow_error("data has " + std::to_string(size) + " bytes: more than 2^64 - 1 in all");
}

}  // namespace aisec_fast
