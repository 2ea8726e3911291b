#pragma once
// The lists of arrays and the noise of one step, checked, for both modules.
#include <algorithm>
#include <utility>
#include <vector>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/noise_call.hpp"
#include "aisec_fast/plain_tensor.hpp"

namespace aisec_fast {

using Objects = std::vector<py::object>;

// A list of arrays and what Python calls it. One that is not required may be empty: it is not used then. Arrays of a
// trainable list may be leaves of torch's autograd.
struct UpdateList {
  const Objects& arrays;
  const char* name;
  bool required = true, trainable = false;
};

inline std::size_t count_arrays(const std::vector<UpdateList>& lists) {
  std::size_t count = 0;
  for (const UpdateList& list : lists) count += list.arrays.size();
  return count;
}

struct UpdateNoise {
  double sigma, granularity;  // sigma 0: no noise and no lattice
  const std::vector<py::bytes>& keys;
  const std::string& generator;
};

// Arrays are written in parallel, so none may share memory with another. They are contiguous.
inline void check_apart(const std::vector<UpdateItem>& items, std::size_t value_bytes) {
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> extents;
  extents.reserve(5 * items.size());
  for (const UpdateItem& item : items)
    for (const void* array :
         {item.arrays.sums, item.arrays.params, item.arrays.state[0], item.arrays.state[1], item.arrays.state[2]})
      if (array != nullptr && item.size > 0) {
        const auto start = reinterpret_cast<std::uintptr_t>(array);
        extents.emplace_back(start, start + item.size * value_bytes);
      }
  std::sort(extents.begin(), extents.end());
  for (std::size_t i = 1; i < extents.size(); ++i)
    if (extents[i].first < extents[i - 1].second) throw py::value_error("arrays of the call overlap in memory");
}

// `views` are those of all lists, one list after the other: sums, params, then state. Devices are the caller's to
// check.
template <class Views>
std::vector<UpdateItem> update_items(const Views& views, const std::vector<UpdateList>& lists, const UpdateNoise& noise,
                                     Generator aes) {
  const std::size_t count = lists[0].arrays.size();
  std::vector<UpdateItem> items(count, UpdateItem{});
  std::size_t place = 0, value_bytes = 0;
  PlainTensors tensors;
  for (std::size_t l = 0; l < lists.size(); ++l) {
    if (lists[l].arrays.empty() && !lists[l].required) continue;
    if (lists[l].arrays.size() != count)
      throw py::value_error(std::string(lists[l].name) + " has another length than " + lists[0].name);
    for (std::size_t a = 0; a < count; ++a) {
      UpdateItem& item = items[a];
      const ArrayView& view = views[place++];
      if (l == 0) item.size = view.size();
      if (l == 0 && a == 0 && view.dtype() != DType::float64) view.of_type(DType::float32);
      value_bytes = views[0].dtype() == DType::float64 ? sizeof(double) : sizeof(float);
      view.of_type(views[0].dtype()).contiguous().writable().of_shape(views[a]);
      tensors.require(lists[l].arrays[a], view, value_bytes, lists[l].trainable);
      (l == 0 ? item.arrays.sums : l == 1 ? item.arrays.params : item.arrays.state[l - 2]) = view.template data<void>();
    }
  }
  check_apart(items, value_bytes);
  if (noise.keys.size() != (noise.sigma == 0.0 ? 0 : count))
    throw py::value_error("keys has " + std::to_string(noise.keys.size()) +
                          " keys, expected one for each of sums, or none without noise");
  for (std::size_t a = 0; a < noise.keys.size(); ++a)
    items[a].noise = noise_call(noise.sigma, noise.granularity, noise.keys[a], noise.generator, aes);
  return items;
}

}  // namespace aisec_fast
