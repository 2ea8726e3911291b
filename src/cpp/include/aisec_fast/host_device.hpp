#pragma once
// Functions shared by the CPU kernels (one object per instruction set), the CUDA kernels and the host tests of the CUDA
// kernels. They live in unnamed namespaces: an inline function with external linkage would be merged across instruction
// sets by the linker, and the copy it keeps may use instructions this CPU lacks.
#if defined(__CUDACC__)
#define AISEC_HD __host__ __device__ __forceinline__
#define AISEC_HD_COLD inline __host__ __device__ __noinline__
#define AISEC_UNROLL _Pragma("unroll")
#else
#define AISEC_HD inline __attribute__((always_inline))
#define AISEC_HD_COLD inline __attribute__((noinline, cold))
#define AISEC_UNROLL
#endif
