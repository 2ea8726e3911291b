#pragma once
// What each family's source defines, once per instruction set; table.cpp puts them together.
#include "aisec_fast/kernels.hpp"

namespace aisec_fast::AISEC_ISA {
NoiseKernels noise_kernels();
ClippingKernels clipping_kernels(DType dtype);
HashingKernels hashing_kernels(bool sha_instructions);
RecordKernels record_kernels(bool sha_instructions);
AdversarialKernels adversarial_kernels();
IntegerKernels integer_kernels();
UpdateKernels update_kernels(DType dtype);
GhostKernels ghost_kernels();
WinogradKernels winograd_kernels();
ConvolutionKernels convolution_kernels();
ProductKernels product_kernels();
}  // namespace aisec_fast::AISEC_ISA
