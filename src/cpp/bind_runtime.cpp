// Instruction sets and threads.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace py = pybind11;

void bind_runtime(py::module_& module) {
  active_kernels();  // a wrong AISEC_FAST_ISA fails the import, not the first call
  module.def(
      "instruction_sets",
      [] {
        std::vector<std::string> names;
        for (const Kernels& kernels : supported_kernels()) names.emplace_back(kernels.name);
        return names;
      },
      "Instruction sets that this CPU runs, best first.");
  module.def("instruction_set", [] { return std::string(active_kernels().name); }, "The one in use.");
  module.def("is_amd", &is_amd, "Whether the processor is one of AMD's.");
  module.def("use_instruction_set", &use_instruction_set, py::arg("name"), py::arg("sha") = true,
             "Switch; ValueError if this CPU lacks it. Without sha as on a CPU without SHA instructions.");
  module.def("set_num_threads", &set_thread_count, py::arg("threads"));
  module.def("share_openmp", &share_openmp, py::arg("path"));
  module.def("shares_openmp", &shares_openmp);
  module.attr("version") = AISEC_FAST_VERSION;
}

}  // namespace aisec_fast
