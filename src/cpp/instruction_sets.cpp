#include "instruction_sets.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(AISEC_X86)
#include <cpuid.h>
#endif

namespace aisec_fast {

#define AISEC_DECLARE(isa) \
  namespace isa {          \
  Kernels kernels(bool);   \
  }
AISEC_DECLARE(baseline)
#if defined(AISEC_X86)
AISEC_DECLARE(avx2)
AISEC_DECLARE(avx512)
namespace sse41 {
HashingKernels hashing_kernels(bool);
RecordKernels record_kernels(bool);
}  // namespace sse41
#endif

namespace {

// CPUID leaf 7, EBX bit 29. The instruction sets with kernels for them have SSE4.1, which settles the rest.
bool cpu_has_sha() {
#if defined(AISEC_X86)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
#else
  return false;
#endif
}

std::vector<Kernels> runnable(bool sha) {
  std::vector<Kernels> found;
#if defined(AISEC_X86)
  if (__builtin_cpu_supports("x86-64-v4")) found.push_back(avx512::kernels(sha));
  if (__builtin_cpu_supports("x86-64-v3")) found.push_back(avx2::kernels(sha));
#endif
  found.push_back(baseline::kernels(sha));
#if defined(AISEC_X86)
  if (__builtin_cpu_supports("x86-64-v2")) {
    Kernels kernels = baseline::kernels(sha);
    kernels.name = "sse41";
    kernels.hashing = sse41::hashing_kernels(sha);
    kernels.records = sse41::record_kernels(sha);
    found.insert(found.end() - 1, kernels);
  }
#endif
  return found;
}

const Kernels& find(std::string_view name, bool sha = true) {
  static const std::vector<Kernels> plain = runnable(false);
  std::string known;
  for (const Kernels& kernels : sha ? supported_kernels() : plain) {
    if (name == kernels.name) return kernels;
    known += known.empty() ? kernels.name : std::string(", ") + kernels.name;
  }
  throw std::invalid_argument("instruction set (AISEC_FAST_ISA) is '" + std::string(name) +
                              "', expected one that this CPU runs: " + known);
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> chosen = [] {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): read once, while the module is imported
    const char* forced = std::getenv("AISEC_FAST_ISA");
    return forced != nullptr && *forced != '\0' ? &find(forced) : &supported_kernels().front();
  }();
  return chosen;
}

}  // namespace

const std::vector<Kernels>& supported_kernels() {
  static const std::vector<Kernels> supported = runnable(cpu_has_sha());
  return supported;
}

const Kernels& active_kernels() { return *active().load(std::memory_order_relaxed); }

Generator aes_instructions() {
#if defined(AISEC_X86)
  static const Generator found = __builtin_cpu_supports("vaes") && __builtin_cpu_supports("avx2") ? Generator::vaes
                                 : __builtin_cpu_supports("aes")                                  ? Generator::aes
                                                                                                  : Generator::chacha;
  return found;
#else
  return Generator::chacha;
#endif
}

bool is_amd() {
#if defined(AISEC_X86)
  return __builtin_cpu_is("amd") != 0;
#else
  return false;
#endif
}

void use_instruction_set(std::string_view name, bool sha) {
  active().store(&find(name, sha), std::memory_order_relaxed);
}

}  // namespace aisec_fast
