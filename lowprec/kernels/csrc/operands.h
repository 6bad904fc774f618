// Reading operands: facts about all of their elements, and packing parts of them.
#pragma once
#include "environment.h"
#include "table.h"

LOWPREC_BEGIN

constexpr int64_t kOutputs = 512;  // outputs of a block, a multiple of kPadding
constexpr int64_t kColumns = 64;   // columns of a block
constexpr int64_t kPadding = 16;   // row functions run over whole vectors
constexpr int64_t kTerms = 32;     // terms packed at a time

template <class T>
struct CarrierOf;
template <>
struct CarrierOf<float> {
  using Carrier = Binary32;
};
template <>
struct CarrierOf<double> {
  using Carrier = Binary64;
};

// Rows x columns of outputs of one matrix of the batch.
struct Block {
  int64_t batch, row, column, rows, columns;
};

inline int64_t first_output(const Matmul& task, const Block& block, int64_t row) {
  return (block.batch * task.rows + block.row + row) * task.columns + block.column;
}

// Facts about the finite elements of an operand other than zero.
struct Facts {
  int significant_bits;      // at most so many
  double smallest, largest;  // magnitudes; smallest > largest if there are none
};

template <class T>
Facts facts_of(const T* x, const int64_t size[3], const int64_t stride[3]) {
  using C = typename CarrierOf<T>::Carrier;
  using Bits = typename C::Bits;
  using L = Layout<C>;
  Bits any = 0, largest = 0, smallest = ~Bits(0);
  // The innermost loop runs along the smallest stride.
  const bool swap = stride[1] < stride[2] && size[1] > 1;
  const int outer = swap ? 2 : 1, inner = swap ? 1 : 2;
  for (int64_t i = 0; i < (stride[0] == 0 ? smaller<int64_t>(1, size[0]) : size[0]); ++i)
    for (int64_t j = 0; j < size[outer]; ++j) {
      const T* row = x + i * stride[0] + j * stride[outer];
      const int64_t step = stride[inner], count = size[inner];
      for (int64_t k = 0; k < count; ++k) {
        const Bits magnitude = bit_cast<Bits>(row[k * step]) & (L::sign - 1);
        const bool counts = (magnitude != 0) & (magnitude < L::infinity);
        any |= counts ? magnitude : 0;
        largest = larger(largest, counts ? magnitude : 0);
        smallest = smaller(smallest, counts ? magnitude : ~Bits(0));
      }
    }
  Facts facts;
  const uint64_t fraction = uint64_t(any & (L::hidden - 1));
  facts.significant_bits =
      fraction ? C::precision - __builtin_ctzll(fraction) : largest ? 1 : 0;
  facts.largest = double(bit_cast<T>(largest));
  facts.smallest = largest ? double(bit_cast<T>(smallest)) : __builtin_inf();
  return facts;
}

// Writes out[k * width + j] = x[k * term + j * item] as doubles, for the given counts.
template <class T>
void pack(double* out, const T* x, int64_t terms, int64_t term, int64_t width,
          int64_t item) {
  if (item == 1) {
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t j = 0; j < width; ++j) out[k * width + j] = double(x[k * term + j]);
  } else {
    for (int64_t j = 0; j < width; ++j)
      for (int64_t k = 0; k < terms; ++k)
        out[k * width + j] = double(x[k * term + j * item]);
  }
}

LOWPREC_END
