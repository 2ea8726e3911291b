// One instruction set's kernel table, compiled once per instruction set.
#include "kernels/families.hpp"

#define AISEC_TEXT_(name) #name
#define AISEC_TEXT(name) AISEC_TEXT_(name)

namespace aisec_fast::AISEC_ISA {
Kernels kernels(bool sha_instructions) {
  return {
      AISEC_TEXT(AISEC_ISA),
      noise_kernels(),
      clipping_kernels(DType::float32),
      clipping_kernels(DType::float64),
      clipping_kernels(DType::bfloat16),
      hashing_kernels(sha_instructions),
      record_kernels(sha_instructions),
      adversarial_kernels(),
      integer_kernels(),
      update_kernels(DType::float32),
      update_kernels(DType::float64),
      ghost_kernels(),
      winograd_kernels(),
      convolution_kernels(),
      product_kernels(),
  };
}
}  // namespace aisec_fast::AISEC_ISA
