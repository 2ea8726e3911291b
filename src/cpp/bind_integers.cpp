#include <algorithm>
#include <bit>
#include <cmath>
#include <mutex>
#include <vector>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/noise_call.hpp"
#include "bind.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t block = 4 * noise_group;  // samples whose words stay in the first-level cache
constexpr std::size_t least_blocks = 4;         // smallest work that is worth a thread

// A sample that its words leave open.
struct Open {
  std::size_t index;
  std::uint64_t words[2];
};

// Words of each block of samples, `each` a sample, then decide(words, first, count, open) over the threads. Returns
// [(index, word, ...)] of what is left open.
template <std::size_t each, class Decide>
py::list draw(std::size_t size, const py::bytes& key, const std::string& generator, const Decide& decide) {
  const NoiseCall call = words_call(key, generator, aes_instructions());
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
        random_words(words, each * first, each * (first + count), call, 0);
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
                         const py::object& guide_, const std::string& generator) {
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
  return draw<1>(out.size(), key, generator,
                 [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                   return kernel(words, count, thresholds.data<const std::uint64_t>(),
                                 guide.data<const std::uint32_t>(), shift, out.data<std::int64_t>() + first, open);
                 });
}

// `wide` holds the rows of the wide step, which knows the scale as exact_scale and slope; empty: there is none.
py::list signed_by_quantile(const py::object& out_, const py::bytes& key, const py::object& rows_, double scale,
                            double offset, double limit, const py::object& wide_, double exact_scale, double slope,
                            const std::string& generator) {
  const ArrayView out(out_, "out"), rows(rows_, "rows"), wide(wide_, "wide");
  require_output(out, DType::int64);
  require_table(rows, DType::float64).of_size(2050 * 4);
  require_table(wide, DType::int64);
  WideScale by{0, 0, exact_scale, offset, slope};
  if (wide.size() != 0) {
    wide.of_size(1280 * 10);
    if (!(exact_scale >= 0x1p20 && exact_scale <= 0x1p40)) throw py::value_error("exact_scale must be 2^20 to 2^40");
    int exponent = 0;
    by.mantissa = static_cast<std::uint64_t>(std::ldexp(std::frexp(exact_scale, &exponent), 53));
    by.fraction = static_cast<unsigned>(55 - exponent);  // exact_scale = mantissa 2^(exponent - 53)
  }
  const IntegerKernels& kernels = active_kernels().integers;
  return draw<1>(
      out.size(), key, generator,
      [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
        std::int64_t* const part = out.data<std::int64_t>() + first;
        const std::size_t opened =
            kernels.signed_by_quantile(words, count, rows.data<const double>(), scale, offset, limit, part, open);
        if (opened == 0 || wide.size() == 0) return opened;
        return kernels.signed_by_wide_quantile(words, wide.data<const std::int64_t>(), by, part, open, opened);
      });
}

py::list decisions(const py::object& out_, const py::bytes& key, std::uint64_t threshold,
                   const std::string& generator) {
  const ArrayView out(out_, "out");
  require_output(out, DType::uint8);
  const auto kernel = active_kernels().integers.decisions;
  return draw<1>(out.size(), key, generator,
                 [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                   return kernel(words, count, threshold, out.data<std::uint8_t>() + first, open);
                 });
}

py::list bounded_integers(const py::object& out_, const py::bytes& key, std::int64_t low, std::uint64_t bound,
                          std::uint64_t growth, bool wide, const std::string& generator) {
  const ArrayView out(out_, "out");
  require_output(out, DType::int64);
  if (wide && growth != 0) throw py::value_error("growth is not 0, as wide integers expect");
  const IntegerKernels& kernels = active_kernels().integers;
  if (wide)
    return draw<2>(out.size(), key, generator,
                   [&](const std::uint64_t* words, std::size_t first, std::size_t count, std::uint32_t* open) {
                     return kernels.bounded_wide(words, count, low, bound, out.data<std::int64_t>() + first, open);
                   });
  return draw<1>(out.size(), key, generator,
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
             py::arg("guide"), py::arg("generator") = "chacha");
  module.def("signed_by_quantile", &signed_by_quantile, py::arg("out"), py::arg("key"), py::arg("rows"),
             py::arg("scale"), py::arg("offset"), py::arg("limit"), py::arg("wide"), py::arg("exact_scale"),
             py::arg("slope"), py::arg("generator") = "chacha");
  module.def("decisions", &decisions, py::arg("out"), py::arg("key"), py::arg("threshold"),
             py::arg("generator") = "chacha");
  module.def("bounded_integers", &bounded_integers, py::arg("out"), py::arg("key"), py::arg("low"), py::arg("bound"),
             py::arg("growth"), py::arg("wide"), py::arg("generator") = "chacha");
  module.def("shuffle", &shuffle, py::arg("places"), py::arg("first"), py::arg("last"));
}

}  // namespace aisec_fast
