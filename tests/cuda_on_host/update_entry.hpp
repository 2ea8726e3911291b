#pragma once
// The C functions of update.cpp.
#include <cstddef>

#include "aisec_fast/kernels.hpp"

extern "C" {
void set_order(unsigned order);
const char* noisy_mean(int type, const aisec_fast::UpdateItem* items, std::size_t count, double divisor);
const char* sgd_step(int type, const aisec_fast::UpdateItem* items, std::size_t count, const aisec_fast::SgdStep* step);
const char* adam_step(int type, const aisec_fast::UpdateItem* items, std::size_t count,
                      const aisec_fast::AdamStep* step);
}
