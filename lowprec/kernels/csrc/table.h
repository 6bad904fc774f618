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

// What to compute from weights and their quantization set.
enum LevelOperation {
  kNearestLevel,
  kSampledLevel,
  kFromLevel,
  kProxAbsolute,
  kProxSquare,
  kProxNorm,
  kSkewQuadratic,
  kSkewQuartic,
  kSkewExtended,
  kSquaredDistances,
};

// Arrays of `count` weights, of which the first has the linear index `first` in its
// tensor. Rows of `width` increasing levels, padded by infinity, and of one mid-point
// less; a row serves `level_run` consecutive elements, 0 for all. The same for scales.
struct LevelTask {
  int64_t operation;
  void* weights;
  const void* directions;  // skewed directions only
  void* out;  // may be `weights` or `directions`; kSquaredDistances: doubles
  int64_t count, first;
  const void* levels;
  const void* middles;
  int64_t width, level_run;
  double spacing;  // of equidistant levels, its multiples, if a power of two; or 0
  const void* scales;
  int64_t scale_run;
  double epsilon, alpha, clip;  // of skewed directions
  int64_t clip_by_size, midpoint_moves;
  double factor;  // lambda of proximal maps; kProxNorm: what is left of a distance
  uint64_t seed, offset;  // of sampled levels: key, index of the first element
  int64_t step;
  // Weights are clamped to these times the scale: before they are quantized, after all
  // other functions. NaN: the row's own first and last level.
  double low, high;
  int64_t keeps_clamped;  // whether what is quantized is written to `weights`
  int64_t threads;
};

// A step of gradient descent along skewed directions, in place. `LevelTask::out` is the
// momentum buffer, null without momentum.
struct DescentTask {
  const void* gradients;
  double step_size, decay, momentum;
  double share;  // of the gradient in the momentum
  int64_t maximize, first_momentum, nesterov;
  int64_t skew_gradient;  // before the momentum, else after it
  int64_t fused;          // whether products are added without being rounded
};

// Arrays of `count` elements that become one of `width` increasing levels at random.
struct Choice {
  const void* x;
  void* out;
  int64_t count;
  const void* levels;
  int64_t width;
  int64_t mode, random_bits, variant;
  uint64_t seed, offset;
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
  Status (*levels_f32)(const LevelTask& task);
  Status (*levels_f64)(const LevelTask& task);
  Status (*choose_f32)(const Choice& choice);
  Status (*choose_f64)(const Choice& choice);
  Status (*descent_f32)(const LevelTask& task, const DescentTask& descent);
  Status (*descent_f64)(const LevelTask& task, const DescentTask& descent);
};

}  // namespace lowprec
