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
  int64_t order, block_size;
  uint64_t seed, offset;
  int threads;
};

// Arrays of `count` elements; `out` may be `x`. Outputs of more than `cache` bytes are
// written past the caches.
struct Elementwise {
  const void* x;
  void* out;
  int64_t count;
  Code code;
  uint64_t seed, offset;  // stochastic modes only
  int64_t cache;
  int threads;
};

struct Kernels {
  Status (*round_f32)(const Elementwise& task);
  Status (*round_f64)(const Elementwise& task);
  Status (*stochastic_f32)(const Elementwise& task);
  Status (*stochastic_f64)(const Elementwise& task);
  Status (*matmul_f32)(const Matmul& task);
  Status (*matmul_f64)(const Matmul& task);
};

}  // namespace lowprec
