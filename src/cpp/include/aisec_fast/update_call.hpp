#pragma once
// The lists of arrays and the noise of one step, checked, for both modules.
#include <vector>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/noise_call.hpp"

namespace aisec_fast {

using Objects = std::vector<py::object>;

// A list of arrays and what Python calls it. One that is not required may be empty: it is not used then.
struct UpdateList {
  const Objects& arrays;
  const char* name;
  bool required = true;
};

struct UpdateNoise {
  double sigma, granularity;  // sigma 0: no noise and no lattice
  const std::vector<py::bytes>& keys;
  const std::string& generator;
};

// `views` are those of all lists, one list after the other: sums, params, then state. Devices are the caller's to
// check.
template <class Views>
std::vector<UpdateItem> update_items(const Views& views, const std::vector<UpdateList>& lists, const UpdateNoise& noise,
                                     Generator aes) {
  const std::size_t count = lists[0].arrays.size();
  std::vector<UpdateItem> items(count, UpdateItem{});
  std::size_t place = 0;
  for (std::size_t l = 0; l < lists.size(); ++l) {
    if (lists[l].arrays.empty() && !lists[l].required) continue;
    if (lists[l].arrays.size() != count)
      throw py::value_error(std::string(lists[l].name) + " has another length than " + lists[0].name);
    for (UpdateItem& item : items) {
      const ArrayView& view = views[place++];
      if (l == 0) item.size = view.size();
      if (views[0].dtype() != DType::float64) views[0].of_type(DType::float32);
      view.of_type(views[0].dtype()).contiguous().writable().of_size(item.size);
      (l == 0 ? item.arrays.sums : l == 1 ? item.arrays.params : item.arrays.state[l - 2]) = view.template data<void>();
    }
  }
  if (noise.keys.size() != (noise.sigma == 0.0 ? 0 : count))
    throw py::value_error("keys has " + std::to_string(noise.keys.size()) +
                          " keys, expected one for each of sums, or none without noise");
  for (std::size_t a = 0; a < noise.keys.size(); ++a)
    items[a].noise = noise_call(noise.sigma, noise.granularity, noise.keys[a], noise.generator, aes);
  return items;
}

}  // namespace aisec_fast
