#include <cstring>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/hashing_call.hpp"
#include "bind.hpp"
#include "records.hpp"

namespace aisec_fast {
namespace {

// The arguments that all have. Whether the records lie inside data is for the caller to know: `data` may span memory
// that is nobody's.
struct RecordsCall {
  ArrayView data, starts, ends, out;
  std::size_t count, limit;

  RecordsCall(const py::object& data_, const py::object& starts_, const py::object& ends_, const py::object& out_,
              const py::int_& max_threads)
      : data(data_, "data"), starts(starts_, "starts"), ends(ends_, "ends"), out(out_, "out") {
    one_dimensional(data.on_device(dlpack::on_cpu).of_type(DType::uint8));
    one_dimensional(starts.on_device(dlpack::on_cpu));
    if (starts.dtype() != DType::uint32 && starts.dtype() != DType::int64)
      throw py::type_error("starts has another dtype than uint32 and int64");
    one_dimensional(ends.on_device(dlpack::on_cpu).of_type(starts.dtype())).of_size(starts.size());
    count = starts.size();
    out.on_device(dlpack::on_cpu).of_type(DType::uint8).contiguous().writable();
    if (out.dimensions() != 2 || out.size(0) != count || (count > 0 && out.size(1) == 0))
      throw py::value_error("out must be [n, size] with a row for each of the " + std::to_string(count) + " records");
    limit = thread_limit(max_threads);
  }

  Records records() const {
    return {data.data<const unsigned char>(), starts.data<const void>(), ends.data<const void>(),
            starts.dtype() == DType::int64,   out.data<unsigned char>(), out.size(1)};
  }
};

const std::uint32_t* words_of(const ArrayView& view, std::size_t least, std::size_t most) {
  view.on_device(dlpack::on_cpu).of_type(DType::uint32).contiguous();
  if (view.size() != least && view.size() != most) view.of_size(least);
  return view.data<const std::uint32_t>();
}

void hash_blake3(const py::object& data, const py::object& starts, const py::object& ends, const py::object& key_,
                 const py::int_& mode_, const py::object& out, const py::int_& max_threads) {
  const RecordsCall call(data, starts, ends, out, max_threads);
  const ArrayView key(key_, "key");
  const std::uint32_t* const words = words_of(key, 8, 8);
  const auto mode = static_cast<std::uint32_t>(whole_number(mode_, "mode", keyed_hash));
  if (mode != 0 && mode != keyed_hash) throw py::value_error("mode must be 0 or 16");
  const py::gil_scoped_release unlocked;
  blake3_records(call.records(), call.count, words, mode, call.limit);
}

void hash_sha256(const py::object& data, const py::object& starts, const py::object& ends, const py::object& chaining_,
                 const py::object& out, const py::int_& max_threads) {
  const RecordsCall call(data, starts, ends, out, max_threads);
  const ArrayView chaining(chaining_, "chaining");
  const std::uint32_t* const inner = words_of(chaining, 8, 16);
  if (call.out.size(1) > 32) throw py::value_error("out has more than 32 columns");
  const std::uint32_t* const outer = chaining.size() == 16 ? inner + 8 : nullptr;
  const py::gil_scoped_release unlocked;
  sha256_records(call.records(), call.count, inner, outer, call.limit);
}

void hash_siphash24(const py::object& data, const py::object& starts, const py::object& ends, const py::object& key_,
                    const py::object& out, const py::int_& max_threads) {
  const RecordsCall call(data, starts, ends, out, max_threads);
  const ArrayView key(key_, "key");
  std::uint64_t words[2];
  std::memcpy(words, words_of(key, 4, 4), sizeof words);
  if (call.out.size(1) != 8 && call.out.size(1) != 16) throw py::value_error("out must have 8 or 16 columns");
  const py::gil_scoped_release unlocked;
  siphash24_records(call.records(), call.count, words, call.limit);
}

}  // namespace

void bind_records(py::module_& module) {
  module.def("blake3_records", &hash_blake3, py::arg("data"), py::arg("starts"), py::arg("ends"), py::arg("key"),
             py::arg("mode"), py::arg("out"), py::arg("max_threads"));
  module.def("sha256_records", &hash_sha256, py::arg("data"), py::arg("starts"), py::arg("ends"), py::arg("chaining"),
             py::arg("out"), py::arg("max_threads"));
  module.def("siphash24_records", &hash_siphash24, py::arg("data"), py::arg("starts"), py::arg("ends"), py::arg("key"),
             py::arg("out"), py::arg("max_threads"));
}

}  // namespace aisec_fast
