#pragma once
// How the C functions that Python calls report: nullptr, or what went wrong, valid until the next call.
#include <cuda_runtime.h>

#include <exception>
#include <string>

template <class Call>
const char* report(const Call& call) {
  static std::string message;
  try {
    const cudaError_t status = call();
    if (status == cudaSuccess && host_cuda::allocations == 0) return nullptr;
    message = status == cudaSuccess ? "scratch memory was not freed" : "CUDA error " + std::to_string(status);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
