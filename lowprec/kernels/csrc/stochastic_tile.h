// Stochastic additions in registers: the random bits are added, the rest truncated.
//
// With q the format's quantum at x, variant A is the multiple of q below x + R q / 2^r.
// Truncations to nested grids compose, so the exact sum may first be rounded toward
// zero to float32 and the random bits to the same grid, unless the bits lost below
// could have carried all the way up to the quantum. Where every bit between is a one,
// or a result exceeds the largest number, the sum is computed again from the operands,
// in double, as the general path does. A finite sum beyond float32 is truncated to
// ones: it is among them.
//
// Additions run while the processor rounds toward zero. Products that are rounded
// before are rounded in a pass of their own, while it rounds to nearest.
#pragma once
#include "simd.h"
#include "tile.h"
#include "tile_words.h"

LOWPREC_BEGIN

static_assert(kRowWords == kTileWidth<Binary32>, "one vector of counters for a row");

// Stochastic rounding of float32 lanes, variant A.
struct StochasticRounding {
  uint32_t unused;       // right shift of a random word to the bits that are dropped
  uint32_t significant;  // those of them that are random
  uint32_t kept;         // mask of the bits that are not dropped
  uint32_t largest;      // bits of the largest number, and those dropped
  uint32_t safe;         // sums below stay in range for kRowTerms terms
  float lowest;          // 2^emin
  RowFunction add;       // the general path
  const RowRounding* exact;
};

// One row of a tile for some terms: the first number of a term lies `stride` behind
// that of the term before.
struct TileRow {
  const float* a;
  int64_t stride;
  const float* b;
  float* sums;
  int64_t terms;
  const TermWords* words;
};

// Lanes of `raised` whose dropped bits are all ones, or beyond the largest number, make
// it invalid.
struct Raised {
  VBits<Binary32> raised;
  VFloat<Binary32> rounded;
};

// kFree: sums are multiples of the quantum where they are below 2^emin, or the format
// has the exponents of the lanes.
template <Level level>
LOWPREC_INLINE Raised raise(const StochasticRounding& rounding, VFloat<Binary32> sum,
                            const uint32_t* words) {
  using B = Binary32;
  using L = Layout<B>;
  const VBits<B> random =
      (load<VBits<B>>(words) >> rounding.unused) & rounding.significant;
  if (level == kFree) {
    const VBits<B> raised = (VBits<B>)sum + random;
    return {raised, (VFloat<B>)(raised & rounding.kept)};
  }
  // In the binade of 2^emin all numbers have the quantum of the subnormal ones.
  const VFloat<B> size = (VFloat<B>)((VBits<B>)sum & (L::sign - 1));
  const VFloat<B> lowest = splat<VFloat<B>>(rounding.lowest);
  const VFloat<B> shift = size < lowest ? lowest : VFloat<B>{};
  const VBits<B> raised = (VBits<B>)(size + shift) + random;
  const VBits<B> sign = (VBits<B>)sum & L::sign;
  const VFloat<B> rounded = (VFloat<B>)(raised & rounding.kept) - shift;
  return {raised, (VFloat<B>)((VBits<B>)rounded | sign)};
}

// The general path for one vector.
__attribute__((noinline)) inline void add_exactly(const StochasticRounding& rounding,
                                                  VFloat<Binary32>* total, float a,
                                                  const float* b,
                                                  const uint32_t* words) {
  alignas(64) double before[kPadding] = {}, term[kPadding] = {};
  alignas(64) uint32_t padded[kPadding] = {};
  for (int i = 0; i < Binary32::lanes; ++i) {
    before[i] = (*total)[i];
    term[i] = double(a) * double(b[i]);  // exact
    padded[i] = words[i];
  }
  {
    const DefaultEnvironment standard;
    rounding.add(before, {term, nullptr, padded, kPadding}, *rounding.exact);
  }
  for (int i = 0; i < Binary32::lanes; ++i) (*total)[i] = float(before[i]);  // exact
}

// Looks at every sum.
template <Level level>
__attribute__((noinline)) void add_carefully(const StochasticRounding& rounding,
                                             VFloat<Binary32>* total,
                                             const TileRow& row, const RowWords& random,
                                             int64_t k, int64_t terms) {
  using B = Binary32;
  using V = VFloat<B>;
  for (int64_t t = 0; t < terms; ++t)
    for (int v = 0; v < kTileVectors; ++v) {
      const float a = row.a[(k + t) * row.stride];
      const float* b = row.b + (k + t) * kTileWidth<B> + v * B::lanes;
      const uint32_t* words = random.of_term(int(t)) + v * B::lanes;
      const V sum = fused(a - V{}, load<V>(b), total[v]);
      const Raised next = raise<level>(rounding, sum, words);
      const VBits<B> size = next.raised & (Layout<B>::sign - 1);
      const VBits<B> dropped = next.raised | rounding.kept;
      if (any<VInt<B>>((dropped == ~uint32_t(0)) | (size > rounding.largest)))
        add_exactly(rounding, &total[v], a, b, words);
      else
        total[v] = next.rounded;
    }
}

// kRowTerms terms, with one look at all sums.
template <Level level>
LOWPREC_INLINE void add_quickly(const StochasticRounding& rounding,
                                VFloat<Binary32>* total, const TileRow& row,
                                const RowWords& random, int64_t k) {
  using B = Binary32;
  using V = VFloat<B>;
  V sums[kTileVectors];
  // Bits kept are ones, that of the sign too: the largest is all ones if any is.
  VBits<B> dropped = splat<VBits<B>>(rounding.kept), largest = {};
  for (int v = 0; v < kTileVectors; ++v) {
    sums[v] = total[v];
    const VBits<B> size = (VBits<B>)total[v] & (Layout<B>::sign - 1);
    largest = larger_number<B>(largest, size);
  }
#pragma GCC unroll 8
  for (int t = 0; t < kRowTerms; ++t) {
    const V left = row.a[(k + t) * row.stride] - V{};
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      const V right = load<V>(row.b + (k + t) * kTileWidth<B> + v * B::lanes);
      const V sum = fused(left, right, sums[v]);
      const Raised next = raise<level>(rounding, sum, random.of_term(t) + v * B::lanes);
      dropped = larger_number<B>(dropped, next.raised | rounding.kept);
      sums[v] = next.rounded;
    }
  }
  const VInt<B> safe = (VInt<B>)largest < int32_t(rounding.safe);
  if (__builtin_expect(any<VInt<B>>((dropped == ~uint32_t(0)) | ~safe), 0)) {
    add_carefully<level>(rounding, total, row, random, k, kRowTerms);
  } else {
    for (int v = 0; v < kTileVectors; ++v) total[v] = sums[v];
  }
}

// `first`: number of the first output of the row. Products must be exact unless kFused.
template <Level level>
void add_random_terms(const StochasticRounding& shared, const TileRow& row,
                      uint64_t first) {
  using B = Binary32;
  using V = VFloat<B>;
  const StochasticRounding rounding = shared;
  RowWords random;
  row.words->begin_row(first, &random);
  V total[kTileVectors];
  for (int v = 0; v < kTileVectors; ++v) total[v] = load<V>(row.sums + v * B::lanes);
  for (int64_t k = 0; k < row.terms; k += kRowTerms) {
    row.words->draw(k, &random);
    const int64_t left = row.terms - k;
    if (left >= kRowTerms)
      add_quickly<level>(rounding, total, row, random, k);
    else
      add_carefully<level>(rounding, total, row, random, k, left);
  }
  for (int v = 0; v < kTileVectors; ++v) store(row.sums + v * B::lanes, total[v]);
}

// The products of a row, rounded.
template <Exactness product, Level level>
void round_products(const RegisterRounding<Binary32>& shared, const TileRow& row,
                    float* out) {
  using B = Binary32;
  using V = VFloat<B>;
  const RegisterRounding<B> rounding = shared;
  constexpr Form form = kFused ? kFusing : kAdding;
  for (int64_t k = 0; k < row.terms; ++k) {
    const V left = row.a[k * row.stride] - V{};
#pragma GCC unroll 2
    for (int64_t i = k * kTileWidth<B>; i < (k + 1) * kTileWidth<B>; i += B::lanes) {
      const V right = load<V>(row.b + i);
      store(out + i, product == kOdd ? rounding.round_product<level>(left, right)
                                     : rounding.round<level, form>(left * right));
    }
  }
}

using AddRandomTerms = void (*)(const StochasticRounding&, const TileRow&, uint64_t);
using RoundProducts = void (*)(const RegisterRounding<Binary32>&, const TileRow&,
                               float*);

LOWPREC_END
