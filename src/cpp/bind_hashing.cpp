#include <stdexcept>
#include <vector>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/hashing_call.hpp"
#include "bind.hpp"
#include "hashing.hpp"
#include "instruction_sets.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t sha256_state_words = 26, sha256_digest_bytes = 32;
constexpr std::uint64_t sha256_most_bytes = (std::uint64_t{1} << 61) - 1;  // the length is stated in 64 bits

const unsigned char* input_bytes(const ArrayView& data) {
  return one_dimensional(data.on_device(dlpack::on_cpu).of_type(DType::uint8)).data<const unsigned char>();
}

void update_blake3(const py::object& state_, const py::object& data_, const py::int_& max_threads) {
  const ArrayView state(state_, "state"), data(data_, "data");
  std::uint32_t* const words = blake3_words(state);
  const unsigned char* const bytes = input_bytes(data);
  const std::size_t size = data.size(), limit = thread_limit(max_threads);
  require_room(Blake3State(words), size);
  const py::gil_scoped_release unlocked;
  blake3_update(words, bytes, size, limit);
}

void output_blake3(const py::object& state_, const py::object& out_, const py::int_& seek) {
  const ArrayView state(state_, "state"), out(out_, "out");
  const std::uint32_t* const words = blake3_words(state);
  unsigned char* const bytes = output_bytes(out);
  const std::uint64_t position = stream_position(seek, out.size());
  const py::gil_scoped_release unlocked;
  blake3_output(words, bytes, out.size(), position);
}

void update_sha256(const py::object& state_, const py::object& data_) {
  const ArrayView state(state_, "state"), data(data_, "data");
  std::uint32_t* const words = state_words(state, sha256_state_words);
  const unsigned char* const bytes = input_bytes(data);
  const std::uint64_t total = std::uint64_t{words[8]} | std::uint64_t{words[9]} << 32;
  if (total > sha256_most_bytes || data.size() > sha256_most_bytes - total)
    throw std::overflow_error("data has " + std::to_string(data.size()) + " bytes: more than 2^61 - 1 in all");
  const py::gil_scoped_release unlocked;
  sha256_update(words, bytes, data.size());
}

void output_sha256(const py::object& state_, const py::object& out_) {
  const ArrayView state(state_, "state"), out(out_, "out");
  const std::uint32_t* const words = state_words(state, sha256_state_words);
  unsigned char* const bytes = output_bytes(out.of_size(sha256_digest_bytes));
  const py::gil_scoped_release unlocked;
  sha256_output(words, bytes);
}

// For tests: row i of data, [n, 64 k] uint8, into row i of states, [n, 8] uint32, side by side.
void streams_sha256(const py::object& states_, const py::object& data_) {
  const ArrayView states(states_, "states"), data(data_, "data");
  states.on_device(dlpack::on_cpu).of_type(DType::uint32).contiguous().writable();
  data.on_device(dlpack::on_cpu).of_type(DType::uint8).contiguous();
  if (states.dimensions() != 2 || states.size(1) != 8) throw py::value_error("states must be [n, 8]");
  if (data.dimensions() != 2 || data.size(0) != states.size(0) || data.size(1) % 64 != 0)
    throw py::value_error("data must be [n, 64 k]");
  std::vector<std::uint32_t*> chaining;
  std::vector<const unsigned char*> inputs;
  for (std::size_t i = 0; i < states.size(0); ++i) {
    chaining.push_back(states.data<std::uint32_t>() + 8 * i);
    inputs.push_back(data.data<const unsigned char>() + data.size(1) * i);
  }
  const py::gil_scoped_release unlocked;
  active_kernels().hashing.sha256_streams(chaining.data(), inputs.data(), data.size(1) / 64, chaining.size());
}

}  // namespace

void bind_hashing(py::module_& module) {
  module.def("blake3_update", &update_blake3, py::arg("state"), py::arg("data"), py::arg("max_threads"));
  module.def("blake3_output", &output_blake3, py::arg("state"), py::arg("out"), py::arg("seek"));
  module.def("sha256_update", &update_sha256, py::arg("state"), py::arg("data"));
  module.def("sha256_output", &output_sha256, py::arg("state"), py::arg("out"));
  module.def("sha256_streams", &streams_sha256, py::arg("states"), py::arg("data"));
}

}  // namespace aisec_fast
