#pragma once
// What Python hands to a noise kernel, checked: shared by _core and _cuda.
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

// The key is 32 bytes, read as little-endian words. `aes` is what this processor has of it: chacha if nothing. Tests
// may ask for "aes_one", AES by the instructions for one block, whose words are those of "aes".
inline NoiseCall words_call(const pybind11::bytes& key, const std::string& generator, Generator aes) {
  NoiseCall call{{}, 1.0, 1.0, Generator::chacha};
  if (generator == "aes" && aes != Generator::chacha)
    call.generator = aes;
  else if (generator == "aes_one" && aes != Generator::chacha)
    call.generator = Generator::aes;
  else if (generator != "chacha")
    throw pybind11::value_error("generator is '" + generator + "', expected 'chacha'" +
                                (aes != Generator::chacha ? " or 'aes'" : " (here there are no instructions for AES)"));
  const std::string bytes = key;
  if (bytes.size() != sizeof call.key)
    throw pybind11::value_error("key has " + std::to_string(bytes.size()) + " bytes, expected 32");
  for (std::size_t i = 0; i < bytes.size(); ++i)
    call.key[i / 4] |= std::uint32_t{static_cast<unsigned char>(bytes[i])} << (8 * (i % 4));
  return call;
}

inline NoiseCall noise_call(double scale, double granularity, const pybind11::bytes& key, const std::string& generator,
                            Generator aes) {
  NoiseCall call = words_call(key, generator, aes);
  call.scale = scale / granularity;
  call.granularity = granularity;
  if (!(call.scale >= 1.0 && call.scale <= 0x1p40))
    throw pybind11::value_error("sigma / granularity is " + std::to_string(call.scale) + ", expected 1 to 2^40");
  return call;
}

inline NoiseCall float_noise_call(double scale, const pybind11::bytes& key, const std::string& generator,
                                  Generator aes) {
  NoiseCall call = words_call(key, generator, aes);
  call.scale = scale;
  if (!(scale > 0.0)) throw pybind11::value_error("sigma is " + std::to_string(scale) + ", expected above 0");
  return call;
}

}  // namespace aisec_fast
