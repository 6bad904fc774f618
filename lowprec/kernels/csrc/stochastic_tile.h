// Stochastic additions in registers: the random bits are added, the rest truncated.
//
// With q the format's quantum at x, variant A is the multiple of q below x + R q / 2^r.
// Truncations to nested grids compose, so the exact sum may first be rounded toward
// zero to float32 and the random bits to the same grid, unless the bits lost below
// could have carried all the way up to the quantum. Vectors in which every bit between
// is a one, or a result exceeds the largest number, are computed again from the
// operands, in double, as the general path does. A finite sum beyond float32 is
// truncated to ones: it is among them.
#pragma once
#include "simd.h"
#include "tile.h"
#include "tile_words.h"

LOWPREC_BEGIN

template <class C>
LOWPREC_INLINE VFloat<C> sum_toward_zero(VFloat<C> a, VFloat<C> b) {
#if defined(__AVX512F__)
  return Directed<C>::sum_toward_zero(a, b);
#else
  using Int = typename C::Int;
  const Pair<C> exact = two_sum<C>(a, b);
  const VInt<C> bits = (VInt<C>)exact.sum, error = (VInt<C>)exact.error;
  const VInt<C> opposite = (bits ^ error) >> Int(C::width - 1);
  return (VFloat<C>)(bits + (opposite & (exact.error != VFloat<C>{})));
#endif
}

// The product must be exact unless kDirected.
template <class C>
LOWPREC_INLINE VFloat<C> fused_toward_zero(VFloat<C> a, VFloat<C> b, VFloat<C> c) {
#if defined(__AVX512F__)
  return Directed<C>::fused_toward_zero(a, b, c);
#else
  return sum_toward_zero<C>(c, a * b);
#endif
}

// An exact product of two numbers.
struct Product {
  VFloat<Binary32> a, b;
};

// The general path for one vector of float32 sums.
__attribute__((noinline)) inline void add_exactly(const RowRounding& rounding,
                                                  VFloat<Binary32>* total,
                                                  const Product& product,
                                                  const uint32_t* words) {
  alignas(64) double before[Binary32::lanes], term[Binary32::lanes];
  for (int i = 0; i < Binary32::lanes; ++i) {
    before[i] = (*total)[i];
    term[i] = double(product.a[i]) * double(product.b[i]);
  }
  add_row<kStochastic, kA, kSmall, false>(
      before, {term, nullptr, words, Binary32::lanes}, rounding);
  for (int i = 0; i < Binary32::lanes; ++i) (*total)[i] = float(before[i]);
}

// One stochastic rounding. Lanes of `raised` whose dropped bits are all ones, or beyond
// the largest number, make it invalid.
struct Raised {
  VBits<Binary32> raised;
  VFloat<Binary32> rounded;
};

// kFree: sums are multiples of the quantum where they are below
// 2^emin, or the format has the exponents of the lanes.
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
  const VBits<B> raised = (VBits<B>)sum_toward_zero<B>(size, shift) + random;
  const VBits<B> sign = (VBits<B>)sum & L::sign;
  const VFloat<B> rounded = (VFloat<B>)(raised & rounding.kept) - shift;
  return {raised, (VFloat<B>)((VBits<B>)rounded | sign)};
}

// Exact products, fused with the addition.
template <Level sum_level>
struct StochasticStep {
  static constexpr Level level = sum_level;
  static LOWPREC_INLINE VFloat<Binary32> sum(const Kernel<Binary32>&,
                                             VFloat<Binary32> total, VFloat<Binary32> a,
                                             VFloat<Binary32> b) {
    return fused_toward_zero<Binary32>(a, b, total);
  }
  static LOWPREC_INLINE Product term(const Kernel<Binary32>&, VFloat<Binary32> a,
                                     VFloat<Binary32> b) {
    return {a, b};
  }
};

template <Exactness product, Level sum_level>
struct RoundedStochasticStep {
  static constexpr Level level = sum_level;
  static LOWPREC_INLINE VFloat<Binary32> sum(const Kernel<Binary32>& kernel,
                                             VFloat<Binary32> total, VFloat<Binary32> a,
                                             VFloat<Binary32> b) {
    return sum_toward_zero<Binary32>(total, term(kernel, a, b).a);
  }
  static LOWPREC_INLINE Product term(const Kernel<Binary32>& kernel, VFloat<Binary32> a,
                                     VFloat<Binary32> b) {
    const VFloat<Binary32> rounded =
        product == kOdd ? kernel.product.template round_product<kClamped>(a, b)
                        : kernel.product.template round<kClamped>(a * b);
    return {rounded, splat<VFloat<Binary32>>(1.0f)};
  }
};

// One row of a tile for some terms: a has one number every `stride`.
struct TileRow {
  const float* a;
  int64_t stride;
  const float* b;
  const RowWords* words;
  int terms;
};

// Looks at every sum.
template <class Step>
__attribute__((noinline)) void add_carefully(const Kernel<Binary32>& kernel,
                                             VFloat<Binary32>* total,
                                             const TileRow& row) {
  using B = Binary32;
  using V = VFloat<B>;
  const StochasticRounding& rounding = kernel.stochastic;
  for (int t = 0; t < row.terms; ++t)
    for (int v = 0; v < kTileVectors; ++v) {
      const V left = row.a[t * row.stride] - V{};
      const V right = load<V>(row.b + t * kTileWidth<B> + v * B::lanes);
      const uint32_t* words = row.words->of_term(t) + v * B::lanes;
      const V sum = Step::sum(kernel, total[v], left, right);
      const Raised next = raise<Step::level>(rounding, sum, words);
      const VBits<B> size = next.raised & (Layout<B>::sign - 1);
      const VBits<B> dropped = next.raised | rounding.kept;
      if (any<VInt<B>>((dropped == ~uint32_t(0)) | (size > rounding.largest)))
        add_exactly(*rounding.exact, &total[v], Step::term(kernel, left, right), words);
      else
        total[v] = next.rounded;
    }
}

// kRowTerms terms, with one look at all sums.
template <class Step>
LOWPREC_INLINE void add_quickly(const Kernel<Binary32>& kernel, VFloat<Binary32>* total,
                                const TileRow& row) {
  using B = Binary32;
  using V = VFloat<B>;
  const StochasticRounding& rounding = kernel.stochastic;
  V sums[kTileVectors];
  VBits<B> largest = {}, dropped = {};
  for (int v = 0; v < kTileVectors; ++v) {
    sums[v] = total[v];
    largest = vector_max<VBits<B>>(largest, (VBits<B>)total[v] & (Layout<B>::sign - 1));
  }
#pragma GCC unroll 8
  for (int t = 0; t < kRowTerms; ++t) {
    const V left = row.a[t * row.stride] - V{};
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      const V right = load<V>(row.b + t * kTileWidth<B> + v * B::lanes);
      const V sum = Step::sum(kernel, sums[v], left, right);
      const Raised next = raise<Step::level>(rounding, sum,
                                             row.words->of_term(t) + v * B::lanes);
      dropped = vector_max<VBits<B>>(dropped, next.raised | rounding.kept);
      sums[v] = next.rounded;
    }
  }
  if (any<VInt<B>>((dropped == ~uint32_t(0)) | (largest >= rounding.safe))) {
    add_carefully<Step>(kernel, total, row);
  } else {
    for (int v = 0; v < kTileVectors; ++v) total[v] = sums[v];
  }
}

// A tile of which `rows` rows are outputs, the first one number `first`, those below
// it `next` further on each.
struct RandomTile {
  Tile<Binary32> tile;
  int64_t height, rows;
  uint64_t first, next;
  const TermWords* words;
};

template <class Step>
void add_random_terms(const Kernel<Binary32>& shared, const RandomTile& random) {
  using B = Binary32;
  using V = VFloat<B>;
  const Kernel<B> kernel = shared;
  const Tile<B> tile = random.tile;
  RowWords words;
  for (int64_t r = 0; r < random.rows; ++r) {
    random.words->begin_row(random.first + uint64_t(r) * random.next, &words);
    float* sums = tile.sums + r * kTileWidth<B>;
    V total[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) total[v] = load<V>(sums + v * B::lanes);
    for (int64_t k = 0; k < tile.terms; k += kRowTerms) {
      random.words->draw(k, &words);
      const TileRow row = {tile.a + k * random.height + r, random.height,
                           tile.b + k * kTileWidth<B>, &words,
                           int(smaller<int64_t>(kRowTerms, tile.terms - k))};
      if (row.terms == kRowTerms)
        add_quickly<Step>(kernel, total, row);
      else
        add_carefully<Step>(kernel, total, row);
    }
    for (int v = 0; v < kTileVectors; ++v) store(sums + v * B::lanes, total[v]);
  }
}

using AddRandomTerms = void (*)(const Kernel<Binary32>&, const RandomTile&);

LOWPREC_END
