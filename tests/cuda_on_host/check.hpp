#pragma once
// What the programs for AddressSanitizer share: heap buffers of exactly the size they need, and comparison of bits.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t size) : size_(size), values_(new T[size]) { std::memset(data(), 0x5a, size * sizeof(T)); }
  T* data() { return values_.get(); }
  T& operator[](std::size_t index) { return values_[index]; }
  std::size_t size() const { return size_; }
  bool operator==(const Buffer& other) const {
    return size_ == other.size_ && std::memcmp(values_.get(), other.values_.get(), size_ * sizeof(T)) == 0;
  }

 private:
  std::size_t size_;
  std::unique_ptr<T[]> values_;
};

// A plain generator: the inputs need no more than variety.
inline double next_value() {
  static std::uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(static_cast<std::int64_t>(state)) * 0x1p-62;
}

inline void expect(bool fine, const char* what, std::size_t rows, std::size_t columns = 0) {
  if (fine) return;
  std::fprintf(stderr, "%s is wrong at size %zu, %zu\n", what, rows, columns);
  std::exit(1);
}

inline void no_error(const char* message) {
  if (message == nullptr) return;
  std::fprintf(stderr, "%s\n", message);
  std::exit(1);
}
