#include <pybind11/stl.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "bind.hpp"
#include "files.hpp"
#include "folders.hpp"

namespace py = pybind11;

namespace aisec_fast {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Never longer between two looks: a signal that another thread caught is seen only when this one wakes up.
constexpr microseconds longest_wait{50'000}, shortest_wait{1'000};

// A path as the system takes it; bytes that are not UTF-8 come back from their surrogate escapes.
std::string system_path(PyObject* text) {
  if (PyUnicode_Check(text) && PyUnicode_IS_ASCII(text))
    return {static_cast<const char*>(PyUnicode_DATA(text)), static_cast<std::size_t>(PyUnicode_GET_LENGTH(text))};
  const auto encoded = py::reinterpret_steal<py::bytes>(PyUnicode_EncodeFSDefault(text));
  if (!encoded) throw py::error_already_set();
  return encoded;
}

// Workers end without the GIL: it is another thread's while one of them still waits for a disk.
struct Unlocked {
  std::unique_ptr<FileHashing> run;
  ~Unlocked() {
    const py::gil_scoped_release unlocked;
    run.reset();
  }
};

void throw_if_signalled() {
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void wait_for(FileHashing& run, double tick, const py::object& progress, std::uint64_t total) {
  const microseconds between{static_cast<std::int64_t>(std::min(std::max(tick, 0.0), 1e9) * 1e6)};
  const microseconds most = progress.is_none() ? longest_wait : std::clamp(between, shortest_wait, longest_wait);
  auto told = Clock::now();
  for (;;) {
    bool ended;
    {
      const py::gil_scoped_release unlocked;
      ended = run.wait(most);
    }
    throw_if_signalled();
    if (ended) return;
    if (progress.is_none() || Clock::now() - told < between) continue;
    told = Clock::now();
    progress(std::min(run.bytes_done(), total), total);
  }
}

const char* name_of(FileOutcome outcome) {
  switch (outcome) {
    case FileOutcome::not_regular:
      return "not_regular";
    case FileOutcome::resized:
      return "resized";
    case FileOutcome::touched:
      return "touched";
    default:
      return "failed";
  }
}

py::tuple hash_files(const std::vector<int>& roots, const py::list& places, const std::vector<std::uint64_t>& sizes,
                     const std::string& algorithm, std::size_t threads, bool keep_going, const py::object& progress,
                     double tick) {
  const std::size_t count = places.size();
  if (roots.size() != count || sizes.size() != count)
    throw py::value_error("roots, places and sizes have different lengths");
  if (threads < 1) throw py::value_error("threads is 0, expected at least 1");
  if (algorithm != "blake3" && algorithm != "sha256")
    throw py::value_error("algorithm is '" + algorithm + "', expected 'blake3' or 'sha256'");
  std::vector<std::string> paths;
  paths.reserve(count);
  for (const py::handle place : places) paths.push_back(system_path(place.ptr()));
  std::vector<FileToHash> files;
  files.reserve(count);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    files.push_back({roots[i], paths[i].c_str(), sizes[i]});
    total += sizes[i];
  }
  const auto digest = algorithm == "blake3" ? FileDigest::blake3 : FileDigest::sha256;
  std::vector<unsigned char> digests(32 * count);
  py::list failures;
  {
    Unlocked here;
    try {
      const py::gil_scoped_release unlocked;
      here.run = std::make_unique<FileHashing>(std::move(files), digest, threads, keep_going, digests.data());
    } catch (const std::system_error& error) {
      PyErr_SetString(PyExc_RuntimeError, "can't start new thread");
      throw py::error_already_set();
    }
    wait_for(*here.run, tick, progress, total);
    const std::vector<FileAnswer>& answers = here.run->answers();
    for (std::size_t i = 0; i < count; ++i) {
      const FileAnswer& answer = answers[i];
      const bool reached = answer.outcome != FileOutcome::failed || answer.first != 0;
      if (answer.outcome != FileOutcome::hashed && reached)
        failures.append(py::make_tuple(i, name_of(answer.outcome), answer.first, answer.second));
    }
  }
  return py::make_tuple(py::bytes(reinterpret_cast<const char*>(digests.data()), digests.size()), failures);
}

py::tuple folder_entries(int root, const py::str& folder) {
  const std::string place = system_path(folder.ptr());
  std::vector<FolderEntry> entries;
  int error;
  {
    const py::gil_scoped_release unlocked;
    error = list_folder(root, place.c_str(), entries, [] {
      const py::gil_scoped_acquire locked;
      throw_if_signalled();
    });
  }
  if (error != 0) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
  py::list names(entries.size()), sizes(entries.size()), modes(entries.size()), errors;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const FolderEntry& entry = entries[i];
    auto name = py::reinterpret_steal<py::str>(
        PyUnicode_DecodeFSDefaultAndSize(entry.name.data(), static_cast<Py_ssize_t>(entry.name.size())));
    if (!name) throw py::error_already_set();
    names[i] = std::move(name);
    sizes[i] = py::int_(entry.size);
    modes[i] = py::int_(entry.mode);
    if (entry.error != 0) errors.append(py::make_tuple(i, entry.error));
  }
  return py::make_tuple(names, sizes, modes, errors);
}

int open_place(int root, const py::str& place, int flags) {
  const std::string path = system_path(place.ptr());
  const int descriptor = open_beneath(root, path.c_str(), flags);
  if (descriptor >= 0) return descriptor;
  PyErr_SetFromErrno(PyExc_OSError);
  throw py::error_already_set();
}

}  // namespace

void bind_files(py::module_& module) {
  module.def("hash_files", &hash_files, py::arg("roots"), py::arg("places"), py::arg("sizes"), py::arg("algorithm"),
             py::arg("threads"), py::arg("keep_going"), py::arg("progress"), py::arg("tick"));
  module.def("folder_entries", &folder_entries, py::arg("root"), py::arg("folder"));
  module.def("open_beneath", &open_place, py::arg("root"), py::arg("place"), py::arg("flags"));
  module.def("uses_openat2", &uses_openat2);
  module.def("use_openat2", &use_openat2, py::arg("wanted"));
}

}  // namespace aisec_fast
