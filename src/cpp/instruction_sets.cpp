#include "instruction_sets.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace aisec_fast {

#define AISEC_DECLARE(isa) \
  namespace isa {          \
  Kernels kernels();       \
  }
AISEC_DECLARE(baseline)
#if defined(AISEC_X86)
AISEC_DECLARE(avx2)
AISEC_DECLARE(avx512)
namespace sse41 {
HashingKernels hashing_kernels();
}
#endif

namespace {

const Kernels& find(std::string_view name) {
  std::string known;
  for (const Kernels& kernels : supported_kernels()) {
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
  static const std::vector<Kernels> supported = [] {
    std::vector<Kernels> found;
#if defined(AISEC_X86)
    if (__builtin_cpu_supports("x86-64-v4")) found.push_back(avx512::kernels());
    if (__builtin_cpu_supports("x86-64-v3")) found.push_back(avx2::kernels());
#endif
    found.push_back(baseline::kernels());
#if defined(AISEC_X86)
    if (__builtin_cpu_supports("x86-64-v2")) {
      Kernels kernels = baseline::kernels();
      kernels.name = "sse41";
      kernels.hashing = sse41::hashing_kernels();
      found.insert(found.end() - 1, kernels);
    }
#endif
    return found;
  }();
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

void use_instruction_set(std::string_view name) { active().store(&find(name), std::memory_order_relaxed); }

}  // namespace aisec_fast
