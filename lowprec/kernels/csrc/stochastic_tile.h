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
#include "philox.h"
#include "tile.h"

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

// The general path for one vector of float32 sums.
__attribute__((noinline)) inline void add_exactly(const RowRounding& rounding,
                                                  VFloat<Binary32>* total,
                                                  const VFloat<Binary32>& a,
                                                  const VFloat<Binary32>& b,
                                                  const uint32_t* words) {
  alignas(64) double before[Binary32::lanes], term[Binary32::lanes];
  for (int i = 0; i < Binary32::lanes; ++i) {
    before[i] = (*total)[i];
    term[i] = double(a[i]) * double(b[i]);
  }
  add_row<kStochastic, kA, kSmall, false>(
      before, {term, nullptr, words, Binary32::lanes}, rounding);
  for (int i = 0; i < Binary32::lanes; ++i) (*total)[i] = float(before[i]);
}

// Whether a lane needs the general path.
LOWPREC_INLINE bool needs_care(const StochasticRounding& rounding,
                               VBits<Binary32> sum) {
#if defined(__AVX512F__)
  const __m512i ones = _mm512_or_si512((__m512i)sum, _mm512_set1_epi32(rounding.kept));
  const __m512i twice = _mm512_add_epi32((__m512i)sum, (__m512i)sum);
  const __mmask16 carried = _mm512_cmpeq_epi32_mask(ones, _mm512_set1_epi32(-1));
  const __mmask16 beyond =
      _mm512_cmpgt_epu32_mask(twice, _mm512_set1_epi32(rounding.twice_largest));
  return (carried | beyond) != 0;
#else
  const VInt<Binary32> mask =
      ((sum | rounding.kept) == ~uint32_t(0)) | (sum + sum > rounding.twice_largest);
#if defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  int any = 0;
  for (int i = 0; i < Binary32::lanes; ++i) any |= mask[i];
  return any != 0;
#endif
#endif
}

// kFree: sums are multiples of the quantum where they are below
// 2^emin, or the format has the exponents of the lanes.
template <Level level>
LOWPREC_INLINE void add_stochastic(const Kernel<Binary32>& kernel,
                                   VFloat<Binary32>* total, VFloat<Binary32> exact_sum,
                                   VFloat<Binary32> a, VFloat<Binary32> b,
                                   const uint32_t* words) {
  using B = Binary32;
  using L = Layout<B>;
  const StochasticRounding& rounding = kernel.stochastic;
  const VBits<B> random =
      (load<VBits<B>>(words) >> rounding.unused) & rounding.significant;
  VBits<B> bits = (VBits<B>)exact_sum;
  VFloat<B> shift = {};
  if (level != kFree) {
    // In the binade of 2^emin all numbers have the quantum of the subnormal ones.
    const VFloat<B> size = (VFloat<B>)(bits & (L::sign - 1));
    const VFloat<B> lowest = splat<VFloat<B>>(rounding.lowest);
    shift = size < lowest ? lowest : shift;
    bits = (VBits<B>)sum_toward_zero<B>(size, shift);
  }
  const VBits<B> sum = bits + random;
  VFloat<B> rounded = (VFloat<B>)(sum & rounding.kept);
  if (level != kFree) {
    const VBits<B> sign = (VBits<B>)exact_sum & L::sign;
    rounded = (VFloat<B>)((VBits<B>)(rounded - shift) | sign);
  }
  if (__builtin_expect(needs_care(rounding, sum), 0))
    add_exactly(*rounding.exact, total, a, b, words);
  else
    *total = rounded;
}

template <Level level>
struct StochasticStep {
  static LOWPREC_INLINE void apply(const Kernel<Binary32>& kernel,
                                   VFloat<Binary32>* total, VFloat<Binary32> a,
                                   VFloat<Binary32> b, const uint32_t* words) {
    const VFloat<Binary32> sum = fused_toward_zero<Binary32>(a, b, *total);
    add_stochastic<level>(kernel, total, sum, a, b, words);
  }
};

template <Exactness product, Level level>
struct RoundedStochasticStep {
  static LOWPREC_INLINE void apply(const Kernel<Binary32>& kernel,
                                   VFloat<Binary32>* total, VFloat<Binary32> a,
                                   VFloat<Binary32> b, const uint32_t* words) {
    const VFloat<Binary32> term =
        product == kOdd ? kernel.product.template round_product<kClamped>(a, b)
                        : kernel.product.template round<kClamped>(a * b);
    const VFloat<Binary32> sum = sum_toward_zero<Binary32>(*total, term);
    const VFloat<Binary32> one = splat<VFloat<Binary32>>(1.0f);
    add_stochastic<level>(kernel, total, sum, term, one, words);
  }
};

// Where the random words of a tile begin: those of row r, group g at
// row[r] + g * kWordStride.
constexpr int64_t kWordStride = kTileWidth<Binary32> + 4 * kLanes;

// The random words of one row of a tile for many terms. Two rounds of Philox are done
// before the loop: of their factors only scalars depend on the term.
class RowWords {
 public:
  // `first`: number of the first output; all counters must have the same high half.
  RowWords(uint64_t first, uint64_t seed) : seed_(seed), skip_(int(first & 3)) {
    const uint64_t block = first >> 2;
    high_ = uint32_t(block >> 32);
    Lanes ramp;
    for (int i = 0; i < kLanes; ++i) ramp[i] = i;
    for (int part = 0; part < kParts; ++part) {
      const Lanes p0 = multiply(ramp + (block + uint64_t(part * kLanes)), 0xD2511F53u);
      third_[part] = (p0 >> 32) ^ uint64_t(kPurposeAdd) ^ (seed >> 32);
      fourth_[part] = p0;
      const Lanes p1 = multiply(third_[part], 0xCD9E8D57u);
      upper_[part] = p1 >> 32;
      lower_[part] = p1;
    }
  }

  // As philox_steps.
  const uint32_t* draw(uint32_t step, uint32_t* buffer) const {
    constexpr int64_t size = 4 * kLanes;
    for (int part = 0; part * size < skip_ + kTileWidth<Binary32>; ++part)
      draw_part(part, step, buffer + part * size);
    return buffer + skip_;
  }

 private:
  // One part more than a tile is wide, for rows that begin inside a counter.
  static constexpr int kParts = int(kTileWidth<Binary32> / (4 * kLanes)) + 1;

  LOWPREC_INLINE void draw_part(int part, uint32_t step, uint32_t* out) const {
    Lanes c0[kGroups], c1[kGroups], c2[kGroups], c3[kGroups];
    uint32_t k0 = uint32_t(seed_), k1 = uint32_t(seed_ >> 32);
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      const uint64_t p1 = uint64_t(step + uint32_t(g)) * 0xCD9E8D57u;
      const uint32_t first = uint32_t(p1 >> 32) ^ high_ ^ k0;
      const uint64_t p0 = uint64_t(first) * 0xD2511F53u;
      c0[g] = upper_[part] ^ uint64_t(uint32_t(p1) ^ (k0 + kWeyl0));
      c1[g] = lower_[part];
      c2[g] = fourth_[part] ^ uint64_t(uint32_t(p0 >> 32) ^ (k1 + kWeyl1));
      c3[g] = Lanes{} + uint64_t(uint32_t(p0));
    }
    k0 += 2 * kWeyl0;
    k1 += 2 * kWeyl1;
#pragma GCC unroll 8
    for (int round = 2; round < 10; ++round) {
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        const Lanes p0 = multiply(c0[g], 0xD2511F53u);
        const Lanes p1 = multiply(c2[g], 0xCD9E8D57u);
        c0[g] = (p1 >> 32) ^ c1[g] ^ uint64_t(k0);
        c2[g] = (p0 >> 32) ^ c3[g] ^ uint64_t(k1);
        c1[g] = p1;
        c3[g] = p0;
      }
      k0 += kWeyl0;
      k1 += kWeyl1;
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      const Lanes first = (c0[g] & 0xFFFFFFFFu) | (c1[g] << 32);
      const Lanes second = (c2[g] & 0xFFFFFFFFu) | (c3[g] << 32);
      store(out + g * kWordStride, interleave(first, second, 0));
      store(out + g * kWordStride + 2 * kLanes, interleave(first, second, 1));
    }
  }

  static constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  uint64_t seed_;
  uint32_t high_;
  int skip_;
  Lanes third_[kParts], fourth_[kParts], upper_[kParts], lower_[kParts];
};

// Up to kGroups terms.
template <class Step, int rows>
void add_random_terms(const Kernel<Binary32>& shared, const Tile<Binary32>& tile,
                      const uint32_t* const* words) {
  using B = Binary32;
  using V = VFloat<B>;
  const Kernel<B> kernel = shared;
  for (int r = 0; r < rows; ++r) {
    V total[kTileVectors];
    float* sums = tile.sums + r * kTileWidth<B>;
    for (int v = 0; v < kTileVectors; ++v) total[v] = load<V>(sums + v * B::lanes);
    for (int64_t k = 0; k < tile.terms; ++k) {
      const V left = tile.a[k * rows + r] - V{};
      for (int v = 0; v < kTileVectors; ++v)
        Step::apply(kernel, &total[v], left,
                    load<V>(tile.b + k * kTileWidth<B> + v * B::lanes),
                    words[r] + k * kWordStride + v * B::lanes);
    }
    for (int v = 0; v < kTileVectors; ++v) store(sums + v * B::lanes, total[v]);
  }
}

using AddRandomTerms = void (*)(const Kernel<Binary32>&, const Tile<Binary32>&,
                                const uint32_t* const*);

LOWPREC_END
