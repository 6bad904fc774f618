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
  Code within;    // inside blocks; elsewhere equal to `accumulate`
  bool promoted;  // `within` was given
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

// How values of a format are written as codes (Encoding in codes.py).
struct Encoding {
  int64_t precision, emin, bits, is_signed, signed_zero, subnormals;
  int64_t largest;        // code of the largest finite value
  int64_t infinity, nan;  // their codes, or -1
};

struct Coding {
  const void* from;
  void* to;
  int64_t count;
  Encoding encoding;
  int width;       // of the carrier
  int code_bytes;  // of one code
  bool decoding;
  int threads;
};

struct Kernels {
  Status (*coding)(const Coding& task);
  Status (*round_f32)(const Elementwise& task);
  Status (*round_f64)(const Elementwise& task);
  Status (*stochastic_f32)(const Elementwise& task);
  Status (*stochastic_f64)(const Elementwise& task);
  Status (*matmul_f32)(const Matmul& task);
  Status (*matmul_f64)(const Matmul& task);
};

}  // namespace lowprec
