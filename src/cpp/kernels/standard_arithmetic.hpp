#pragma once
// Rounding to nearest with denormal numbers: what the bounds of docs/noise.md depend on.

namespace aisec_fast {
namespace {

// While it lives this thread rounds to nearest and keeps denormal numbers, whatever the caller has set (on x86;
// elsewhere the caller must not have changed it).
class StandardArithmetic {
 public:
#if defined(AISEC_X86)
  StandardArithmetic() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
  ~StandardArithmetic() { __builtin_ia32_ldmxcsr(saved_); }
#else
  StandardArithmetic() {}
#endif
  StandardArithmetic(const StandardArithmetic&) = delete;
  StandardArithmetic& operator=(const StandardArithmetic&) = delete;

 private:
#if defined(AISEC_X86)
  unsigned saved_;
#endif
};

}  // namespace
}  // namespace aisec_fast
