#include "aisec_fast/hashing_call.hpp"
#include "bind.hpp"
#include "call.hpp"
#include "hashing.cuh"

namespace aisec_fast::bindings {
namespace {

// The state is in host memory. GPUs have threads enough: the limit is checked and else means nothing here.
void update(const py::object& state_, const py::object& data_, const py::int_& max_threads) {
  const ArrayView state(state_, "state");
  const Arrays arrays({{data_, "data"}});
  std::uint32_t* const words = blake3_words(state);
  const ArrayView& data = one_dimensional(arrays[0].of_type(DType::uint8));
  thread_limit(max_threads);
  require_room(Blake3State(words), data.size());
  arrays.run([&](cudaStream_t stream) {
    return cuda::blake3_update(words, data.data<const unsigned char>(), data.size(), stream);
  });
}

// Of a state in host memory into host memory.
void output(const py::object& state_, const py::object& out_, const py::int_& seek) {
  const ArrayView state(state_, "state"), out(out_, "out");
  const std::uint32_t* const words = blake3_words(state);
  unsigned char* const bytes = output_bytes(out);
  const std::uint64_t position = stream_position(seek, out.size());
  const py::gil_scoped_release unlocked;
  cuda::blake3_output(words, bytes, out.size(), position);
}

}  // namespace

void bind_hashing(py::module_& module) {
  module.def("blake3_update", &update, py::arg("state"), py::arg("data"), py::arg("max_threads"));
  module.def("blake3_output", &output, py::arg("state"), py::arg("out"), py::arg("seek"));
}

}  // namespace aisec_fast::bindings
