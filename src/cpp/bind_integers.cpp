#include <algorithm>
#include <bit>
#include <mutex>
#include <vector>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/noise_call.hpp"
#include "bind.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t block = 8 * noise_group;  // samples whose words stay in the first-level cache
constexpr std::size_t least_blocks = 4;         // smallest work that is worth a thread

// A sample that its words leave open.
struct Open {
  std::size_t index;
  std::uint64_t words[2];
};

// Words of each block of samples, `each` a sample, then decide(words, first, count, open) over the threads. Returns
// [(index, word, ...)] of what is left open.
template <std::size_t each, class Decide>
py::list draw(std::size_t size, const py::bytes& key, const Decide& decide) {
  const NoiseCall call = noise_call(1.0, 1.0, key);
  const auto random_words = active_kernels().noise.random_words;
  std::vector<Open> found;
  std::mutex guard;
  {
    const py::gil_scoped_release unlocked;
    parallel_for(size / block + (size % block != 0), least_blocks, [&](std::size_t begin, std::size_t end) {
      std::uint64_t words[each * block];
      std::uint32_t open[block];
      for (std::size_t first = begin * block; first < std::min(size, end * block); first += block) {
        const std::size_t count = std::min(block, size - first);
        // The kernel writes word i to its array's place i: an array whose place each * first is the buffer.
        auto* const array = reinterpret_cast<std::uint64_t*>(reinterpret_cast<std::uintptr_t>(words) -
                                                             each * first * sizeof(std::uint64_t));
        random_words(array, each * first, each * (first + count), call.key, 0);
        const std::size_t opened = decide(words, first, count, open);
        if (opened == 0) continue;
        const std::lock_guard lock(guard);
        for (std::size_t j = 0; j < opened; ++j)
          found.push_back({first + open[j], {words[each * open[j]], words[each * open[j] + each - 1]}});
      }
    });
  }
  py::list result;
  for (const Open& sample : found) {
    if constexpr (each == 1)
      result.append(py::make_tuple(sample.index, sample.words[0]));
    else
      result.append(py::make_tuple(sample.index, sample.words[0], sample.words[1]));
  }
  return result;
}

const ArrayView& require_output(const ArrayView& out, DType dtype) {
  return out.on_device(dlpack::on_cpu).of_type(dtype).contiguous().writable();
}

const ArrayView& require_table(const ArrayView& table, DType dtype) {
  return table.on_device(dlpack::on_cpu).of_type(dtype).contiguous();
}

py::list signed_by_table(const py::object& out_, const py::bytes& key, const py::object& thresholds_,
                         const py::object& guide_) {
  const ArrayView out(out_, "out"), thresholds(thresholds_, "thresholds"), guide(guide_, "guide");
  require_output(out, DType::int64);
  require_table(thresholds, DType::uint64);
  require_table(guide, DType::uint32);
  const std::size_t last = thresholds.size() - 1, cells = guide.size();
  if (thresholds.size() == 0 || thresholds.data<std::uint64_t>()[last] != 0)
    throw py::value_error("thresholds must end with 0");
  if (cells < 2 || !std::has_single_bit(cells)) throw py::value_error("guide must have 2^n entries, n >= 1");
  if (std::any_of(guide.data<std::uint32_t>(), guide.data<std::uint32_t>() + cells,
                  [&](std::uint32_t start) { return start > last; }))
    throw py::value_error("guide leads beyond thresholds");
  const unsigned shift = 63 - static_cast<unsigned>(std::countr_zero(cells));
  const auto kernel = active_kernels().integers.signed_by_table;
  return draw<1>(out.size(), key,
                 [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                   return kernel(words, count, thresholds.data<const std::uint64_t>(),
                                 guide.data<const std::uint32_t>(), shift, out.data<std::int64_t>() + first, open);
                 });
}

py::list signed_by_quantile(const py::object& out_, const py::bytes& key, const py::object& rows_, double scale,
                            double offset, double limit) {
  const ArrayView out(out_, "out"), rows(rows_, "rows");
  require_output(out, DType::int64);
  require_table(rows, DType::float64).of_size(2050 * 4);
  const auto kernel = active_kernels().integers.signed_by_quantile;
  return draw<1>(out.size(), key,
                 [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                   return kernel(words, count, rows.data<const double>(), scale, offset, limit,
                                 out.data<std::int64_t>() + first, open);
                 });
}

py::list decisions(const py::object& out_, const py::bytes& key, std::uint64_t threshold) {
  const ArrayView out(out_, "out");
  require_output(out, DType::uint8);
  const auto kernel = active_kernels().integers.decisions;
  return draw<1>(out.size(), key,
                 [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                   return kernel(words, count, threshold, out.data<std::uint8_t>() + first, open);
                 });
}

py::list bounded_integers(const py::object& out_, const py::bytes& key, std::int64_t low, std::uint64_t bound,
                          std::uint64_t growth, bool wide) {
  const ArrayView out(out_, "out");
  require_output(out, DType::int64);
  if (wide && growth != 0) throw py::value_error("growth is not 0, as wide integers expect");
  const IntegerKernels& kernels = active_kernels().integers;
  if (wide)
    return draw<2>(out.size(), key,
                   [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                     return kernels.bounded_wide(words, count, low, bound, out.data<std::int64_t>() + first, open);
                   });
  return draw<1>(out.size(), key,
                 [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                   return kernels.bounded(words, count, low, bound + growth * first, growth,
                                          out.data<std::int64_t>() + first, open);
                 });
}

void shuffle(const py::object& places_, std::size_t first, std::size_t last) {
  const ArrayView places(places_, "places");
  require_output(places, DType::int64);
  if (first > last || last > places.size()) throw py::value_error("first and last must lie in places");
  std::int64_t* const place = places.data<std::int64_t>();
  const py::gil_scoped_release unlocked;
  for (std::size_t i = first; i < last; ++i) {
    const auto j = static_cast<std::size_t>(place[i]);
    if (j > i) throw py::index_error("places holds a step beyond its own place");
    place[i] = place[j];
    place[j] = static_cast<std::int64_t>(i);
  }
}

}  // namespace

void bind_integers(py::module_& module) {
  module.def("signed_by_table", &signed_by_table, py::arg("out"), py::arg("key"), py::arg("thresholds"),
             py::arg("guide"));
  module.def("signed_by_quantile", &signed_by_quantile, py::arg("out"), py::arg("key"), py::arg("rows"),
             py::arg("scale"), py::arg("offset"), py::arg("limit"));
  module.def("decisions", &decisions, py::arg("out"), py::arg("key"), py::arg("threshold"));
  module.def("bounded_integers", &bounded_integers, py::arg("out"), py::arg("key"), py::arg("low"), py::arg("bound"),
             py::arg("growth"), py::arg("wide"));
  module.def("shuffle", &shuffle, py::arg("places"), py::arg("first"), py::arg("last"));
}

}  // namespace aisec_fast
