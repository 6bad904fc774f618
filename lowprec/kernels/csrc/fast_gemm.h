// Products with nearest-even accumulators: the sums stay in registers.
//
// A rounding costs some five instructions (see Magic in fast.h), and where it is proved
// to change nothing, float lanes take the place of double ones and the rounding to odd
// is left out. The proofs are in `proved`; everything else takes the general path.
#pragma once
#include "addition.h"
#include "cutting.h"
#include "fast.h"

LOWPREC_BEGIN

// Rounding to nearest-even of sums and products in registers. Nothing may overflow the
// addition of c, so there is no clamp; NaN passes through.
template <class C>
struct RegisterRounding {
  using Bits = typename C::Bits;
  using Float = typename C::Float;
  Bits lowest, raise, over;
  Float largest;

  explicit RegisterRounding(const Plan<C>& plan)
      : lowest(Bits(plan.emin) << Layout<C>::fraction),
        raise(Bits(plan.drop) << Layout<C>::fraction),
        over(plan.overflow[0]),
        largest(bit_cast<Float>(plan.largest)) {}

  template <bool subnormals, bool overflow>
  LOWPREC_INLINE VFloat<C> round(VFloat<C> x) const {
    using L = Layout<C>;
    const VBits<C> sign = (VBits<C>)x & L::sign;
    const VFloat<C> size = (VFloat<C>)((VBits<C>)x & Bits(L::sign - 1));
    VBits<C> binade = (VBits<C>)x & L::infinity;
    if (subnormals) binade = vector_max<VBits<C>>(binade, splat<VBits<C>>(lowest));
    const VFloat<C> c = (VFloat<C>)(binade + raise);
    VFloat<C> rounded = (size + c) - c;
    if (overflow)
      rounded = rounded > largest ? (VFloat<C>)splat<VBits<C>>(over) : rounded;
    return (VFloat<C>)((VBits<C>)rounded | sign);
  }
};

// What was proved about a call.
struct Proof {
  bool rounded;  // products are rounded
  bool odd;      // sums may be inexact in a way that matters: round them to odd first
  bool guarded;  // sums may overflow or fall below the accumulator's quantum
};

template <class C>
struct Kernel {
  RegisterRounding<C> sum, product;
};

template <class C, bool rounded, bool odd, bool guarded>
LOWPREC_INLINE VFloat<C> step(const Kernel<C>& kernel, VFloat<C> total,
                              VFloat<C> term) {
  if (rounded) term = kernel.product.template round<true, guarded>(term);
  VFloat<C> sum;
  if (odd) {
    const Pair<C> exact = two_sum<C>(total, term);
    sum = to_odd<C>(exact.sum, exact.error);
  } else {
    sum = total + term;
  }
  return kernel.sum.template round<guarded, guarded>(sum);
}

constexpr int64_t kFastOutputs = 2048;
constexpr int kRowTile = 4;  // packed rows are padded to a multiple of it

// Packed operands and the sums of a block: [term][row], [term][column], [row][column];
// `width` is the padded number of columns, a multiple of the lanes.
template <class C>
struct Panel {
  const typename C::Float* a;
  const typename C::Float* b;
  typename C::Float* total;
  int64_t terms, rows, width;
};

template <class C, bool rounded, bool odd, bool guarded, int rows, int vectors>
LOWPREC_INLINE void tile(const Kernel<C>& kernel, const Panel<C>& panel, int64_t row,
                         int64_t column) {
  using V = VFloat<C>;
  V total[rows][vectors];
  typename C::Float* out = panel.total + row * panel.width + column;
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      total[r][v] = load<V>(out + r * panel.width + v * C::lanes);
  const typename C::Float* a = panel.a + row;
  const typename C::Float* b = panel.b + column;
  for (int64_t k = 0; k < panel.terms; ++k, a += panel.rows, b += panel.width) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const V right = load<V>(b + v * C::lanes);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
        total[r][v] = step<C, rounded, odd, guarded>(kernel, total[r][v], right * a[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      store(out + r * panel.width + v * C::lanes, total[r][v]);
}

template <class C, bool rounded, bool odd, bool guarded>
void add_panel(const Kernel<C>& shared, const Panel<C>& panel) {
  const Kernel<C> kernel = shared;
  int64_t column = 0;
  for (; column + 2 * C::lanes <= panel.width; column += 2 * C::lanes)
    for (int64_t row = 0; row < panel.rows; row += 2)
      tile<C, rounded, odd, guarded, 2, 2>(kernel, panel, row, column);
  for (; column < panel.width; column += C::lanes)
    for (int64_t row = 0; row < panel.rows; row += 4)
      tile<C, rounded, odd, guarded, 4, 1>(kernel, panel, row, column);
}

// total <- fl(total + partial), and partial <- +0: the end of a block of terms.
template <class C, bool odd>
void combine_block(const Kernel<C>& kernel, typename C::Float* total,
                   typename C::Float* partial, int64_t count) {
  using V = VFloat<C>;
  for (int64_t i = 0; i < count; i += C::lanes) {
    const V sum =
        step<C, false, odd, true>(kernel, load<V>(total + i), load<V>(partial + i));
    store(total + i, sum);
    store(partial + i, V{});
  }
}

template <class C>
using AddPanel = void (*)(const Kernel<C>&, const Panel<C>&);

template <class C>
AddPanel<C> select_panel(const Proof& proof) {
  if (proof.rounded) {
    if (proof.odd) return add_panel<C, true, true, true>;
    return proof.guarded ? add_panel<C, true, false, true>
                         : add_panel<C, true, false, false>;
  }
  if (proof.odd)
    return proof.guarded ? add_panel<C, false, true, true>
                         : add_panel<C, false, true, false>;
  return proof.guarded ? add_panel<C, false, false, true>
                       : add_panel<C, false, false, false>;
}

// C: lanes of the computation. T: type of the operands.
template <class T, class C>
void run_fast(const Matmul& task, const Kernel<C>& kernel, const Proof& proof,
              int64_t out_row, int64_t out_column) {
  using W = typename C::Float;
  constexpr int64_t capacity = kFastOutputs + kRowTile * kColumns;
  const AddPanel<C> add = select_panel<C>(proof);
  const bool blocked = task.order == kBlocked;
  const Cutting cutting = cut(task, kFastOutputs, C::lanes);
  [[maybe_unused]] const int team = team_for(task, cutting);
#pragma omp parallel for num_threads(team) schedule(dynamic, 1) if (team > 1)
  for (int64_t number = 0; number < cutting.count; ++number) {
    const DefaultEnvironment standard;
    const Block block = block_at(task, cutting, number);
    const int64_t rows = (block.rows + kRowTile - 1) / kRowTile * kRowTile;
    const int64_t width = (block.columns + C::lanes - 1) / C::lanes * C::lanes;
    alignas(64) W total[capacity], partial[capacity];
    alignas(64) W a[kTerms * (kRows + kRowTile)], b[kTerms * kColumns];
    for (int64_t i = 0; i < rows * width; ++i) total[i] = partial[i] = W(0);
    // What lies in the padding is zero: it must not slow arithmetic down.
    const int64_t packed = smaller(kTerms, task.terms);
    for (int64_t i = 0; i < packed * rows; ++i) a[i] = W(0);
    for (int64_t i = 0; i < packed * width; ++i) b[i] = W(0);
    const T* left =
        (const T*)task.a + block.batch * task.a_batch + block.row * task.a_row;
    const T* right =
        (const T*)task.b + block.batch * task.b_batch + block.column * task.b_column;

    int64_t until = blocked ? task.block_size : task.terms;  // terms left in the block
    for (int64_t k = 0; k < task.terms;) {
      const int64_t count = smaller(smaller(kTerms, task.terms - k), until);
      pack(a, left + k * task.a_term, count, task.a_term, block.rows, task.a_row, rows);
      pack(b, right + k * task.b_term, count, task.b_term, block.columns, task.b_column,
           width);
      add(kernel, {a, b, blocked ? partial : total, count, rows, width});
      k += count;
      until -= count;
      if (blocked && (until == 0 || k == task.terms)) {
        (proof.odd ? combine_block<C, true>
                   : combine_block<C, false>)(kernel, total, partial, rows * width);
        until = task.block_size;
      }
    }
    for (int64_t r = 0; r < block.rows; ++r) {
      T* out = (T*)task.out + block.batch * task.rows * task.columns +
               (block.row + r) * out_row + block.column * out_column;
      for (int64_t c = 0; c < block.columns; ++c) {
        const T value = T(total[r * width + c]);
        out[c * out_column] = value == value ? value : T(__builtin_nan(""));
      }
    }
  }
}

LOWPREC_END
