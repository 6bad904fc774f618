// Reading operands: facts about all of their elements, and packing parts of them.
#pragma once
#include "environment.h"
#include "table.h"

LOWPREC_BEGIN

constexpr int64_t kOutputs = 512;  // outputs of a block, a multiple of kPadding
constexpr int64_t kColumns = 64;   // columns of a block, at most
constexpr int64_t kRows = 128;     // rows of a block, at most
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

// Facts about the elements of an operand that are neither zero nor infinite nor NaN.
struct Facts {
  int significant_bits;      // at most so many
  double smallest, largest;  // magnitudes; infinity and 0 if there are none
  bool finite;               // no infinity or NaN

  // Every element is a multiple of 2^lowest_bit().
  int lowest_bit() const { return __builtin_ilogb(smallest) - significant_bits + 1; }
};

template <class C>
struct Extremes {
  VBits<C> any = {}, largest = {}, specials = {}, smallest = ~VBits<C>{};

  LOWPREC_INLINE void see(VBits<C> bits) {
    using L = Layout<C>;
    const VBits<C> magnitude = bits & typename C::Bits(L::sign - 1);
    const VInt<C> special = magnitude >= L::infinity;
    const VInt<C> nonzero = magnitude != typename C::Bits(0);
    const VBits<C> number = magnitude & ~(VBits<C>)special;
    specials |= (VBits<C>)special;
    any |= number;
    largest = number > largest ? number : largest;
    const VBits<C> size =
        number | (VBits<C>)(special | ~nonzero);  // all ones: no number
    smallest = size < smallest ? size : smallest;
  }
};

template <class T>
Facts facts_of(const T* x, const int64_t size[3], const int64_t stride[3]) {
  using C = typename CarrierOf<T>::Carrier;
  using Bits = typename C::Bits;
  using L = Layout<C>;
  // Rows run along the smaller stride; adjacent rows are one long row.
  const bool swap = stride[1] < stride[2];
  int64_t count = size[swap ? 1 : 2], rows = size[swap ? 2 : 1];
  const int64_t step = stride[swap ? 1 : 2], next = stride[swap ? 2 : 1];
  if (next == count * step) {
    count *= rows;
    rows = 1;
  }
  const int64_t batch = stride[0] == 0 ? smaller<int64_t>(1, size[0]) : size[0];
  Extremes<C> seen;
  for (int64_t i = 0; i < batch * rows; ++i) {
    const T* row = x + i / rows * stride[0] + i % rows * next;
    int64_t k = 0;
    if (step == 1)
      for (; k + C::lanes <= count; k += C::lanes) seen.see(load<VBits<C>>(row + k));
    while (k < count) {
      VBits<C> rest = {};
      for (int lane = 0; lane < C::lanes && k < count; ++lane, ++k)
        rest[lane] = bit_cast<Bits>(row[k * step]);
      seen.see(rest);
    }
  }
  Bits any = 0, largest = 0, smallest = ~Bits(0), specials = 0;
  for (int lane = 0; lane < C::lanes; ++lane) {
    any |= seen.any[lane];
    specials |= seen.specials[lane];
    largest = larger<Bits>(largest, seen.largest[lane]);
    smallest = smaller<Bits>(smallest, seen.smallest[lane]);
  }
  Facts facts;
  const uint64_t fraction = uint64_t(any & Bits(L::hidden - 1));
  facts.significant_bits = fraction  ? C::precision - __builtin_ctzll(fraction)
                           : largest ? 1
                                     : 0;
  facts.largest = double(bit_cast<T>(largest));
  facts.smallest = largest ? double(bit_cast<T>(smallest)) : __builtin_inf();
  facts.finite = specials == 0;
  return facts;
}

// Writes out[k * width + j] = x[k * term + j * item], converted, for the given counts.
template <class T, class W>
void pack(W* out, const T* x, int64_t terms, int64_t term, int64_t count, int64_t item,
          int64_t width) {
  if (item == 1) {
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t j = 0; j < count; ++j) out[k * width + j] = W(x[k * term + j]);
  } else {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t k = 0; k < terms; ++k)
        out[k * width + j] = W(x[k * term + j * item]);
  }
}

LOWPREC_END
