#pragma once
// Which instruction sets this build holds, which this CPU runs, and which one is in use.
#include <string_view>
#include <vector>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

const std::vector<Kernels>& supported_kernels();  // those this CPU runs, best first
const Kernels& active_kernels();                  // AISEC_FAST_ISA, or the best
// std::invalid_argument if this CPU lacks it. Without `sha` the SHA instructions of x86 are left alone, as on a CPU
// that has none: tests compare.
void use_instruction_set(std::string_view name, bool sha = true);

bool is_amd();  // the processor

Generator aes_instructions();  // the best that this CPU has; Generator::chacha if none

}  // namespace aisec_fast
