// One instruction set's kernel table, compiled once per instruction set.
#include "kernels/families.hpp"

#define AISEC_TEXT_(name) #name
#define AISEC_TEXT(name) AISEC_TEXT_(name)

namespace aisec_fast::AISEC_ISA {
Kernels kernels() {
  Kernels table{};
  table.name = AISEC_TEXT(AISEC_ISA);
  table.noise = noise_kernels();
  table.clipping_float32 = clipping_kernels(DType::float32);
  table.clipping_float64 = clipping_kernels(DType::float64);
  table.clipping_bfloat16 = clipping_kernels(DType::bfloat16);
  table.adversarial = adversarial_kernels();
  return table;
}
}  // namespace aisec_fast::AISEC_ISA
