// What one instruction-set build offers to the dispatcher in library.cpp.
#pragma once
#include "code.h"

namespace lowprec {

// Operands [batch, rows, terms] x [batch, terms, columns]; strides count elements.
struct Matmul {
  const void* a;
  const void* b;
  void* out;  // [batch, rows, columns], contiguous
  int64_t batch, rows, terms, columns;
  int64_t a_batch, a_row, a_term;
  int64_t b_batch, b_term, b_column;
  Code accumulate;
  Code product;
  bool exact_products;
  Code within;  // inside blocks; elsewhere equal to `accumulate`
  bool promoted;  // `within` was given
  int64_t order, block_size;
  uint64_t seed, offset;
  int threads;
};

struct Kernels {
  Status (*round_f32)(const float* x, float* out, int64_t count, const Code& code,
                      int threads);
  Status (*round_f64)(const double* x, double* out, int64_t count, const Code& code,
                      int threads);
  Status (*stochastic_f32)(const float* x, float* out, int64_t count, const Code& code,
                           uint64_t seed, uint64_t offset, int threads);
  Status (*stochastic_f64)(const double* x, double* out, int64_t count,
                           const Code& code, uint64_t seed, uint64_t offset,
                           int threads);
  Status (*matmul_f32)(const Matmul& task);
  Status (*matmul_f64)(const Matmul& task);
};

}  // namespace lowprec
