#pragma once
// The C functions of adversarial.cpp.
#include <cstddef>

#include "aisec_fast/kernels.hpp"

extern "C" {
void set_order(unsigned order);
const char* linf_step(int type, std::size_t rows, const aisec_fast::AdversarialStep* step);
const char* l2_step(int type, std::size_t rows, const aisec_fast::AdversarialStep* step);
const char* l1_step(int type, std::size_t rows, const aisec_fast::AdversarialStep* step);
const char* l0_step(int type, std::size_t rows, const aisec_fast::AdversarialStep* step);
}
