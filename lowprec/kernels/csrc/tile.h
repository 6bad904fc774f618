// One step of many sums in registers: the term, the addition and its rounding.
//
// Everything here rounds to nearest-even in a few instructions, each under conditions
// that proofs.h establishes before a call takes this path.
#pragma once
#include "addition.h"

LOWPREC_BEGIN

// Whether the hardware multiplies and adds with one rounding.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// Whether instructions can round toward negative and toward positive: the neighbours
// of an exact result, of which rounding to odd takes the odd one.
#if defined(__AVX512F__)
constexpr bool kDirected = true;
#else
constexpr bool kDirected = false;
#endif

// What a rounding must be prepared for.
enum Level {
  kFree,        // arguments are multiples of the quantum and do not overflow
  kUnsigned,    // arguments may lie below the quantum; the sign of a zero is irrelevant
  kClamped,     // as kUnsigned, with the sign of zeros
  kSaturating,  // finite arguments beyond the largest number become that number
  kGuarded      // results may overflow in any way
};

// How the exact value reaches the lanes before it is rounded to the format.
enum Exactness {
  kPlain,  // rounded to nearest by the lanes, which is exact or does no harm
  kOdd     // rounded to odd
};

// a b + c rounded once if kFused; else the product must be exact.
LOWPREC_INLINE VFloat<Binary32> fused(VFloat<Binary32> a, VFloat<Binary32> b,
                                      VFloat<Binary32> c) {
#if defined(__AVX512F__)
  return (VFloat<Binary32>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (VFloat<Binary32>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  VFloat<Binary32> result;
  for (int i = 0; i < Binary32::lanes; ++i)
    result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
#else
  return a * b + c;
#endif
}

LOWPREC_INLINE VFloat<Binary64> fused(VFloat<Binary64> a, VFloat<Binary64> b,
                                      VFloat<Binary64> c) {
#if defined(__AVX512F__)
  return (VFloat<Binary64>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (VFloat<Binary64>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_FEATURE_FMA)
  VFloat<Binary64> result;
  for (int i = 0; i < Binary64::lanes; ++i) result[i] = __builtin_fma(a[i], b[i], c[i]);
  return result;
#else
  return a * b + c;
#endif
}

// x with its magnitude limited.
LOWPREC_INLINE VFloat<Binary32> at_most(VFloat<Binary32> x, VFloat<Binary32> limit) {
#if defined(__AVX512DQ__)
  return (VFloat<Binary32>)_mm512_range_ps((__m512)x, (__m512)limit, 2);
#else
  const VFloat<Binary32> below = x < -limit ? -limit : x;
  return below > limit ? limit : below;
#endif
}

LOWPREC_INLINE VFloat<Binary64> at_most(VFloat<Binary64> x, VFloat<Binary64> limit) {
#if defined(__AVX512DQ__)
  return (VFloat<Binary64>)_mm512_range_pd((__m512d)x, (__m512d)limit, 2);
#else
  const VFloat<Binary64> below = x < -limit ? -limit : x;
  return below > limit ? limit : below;
#endif
}

// The same rounding by additions or by fused multiplications, which use different parts
// of a processor: alternating between them keeps both busy.
enum Form { kAdding, kFusing };

// Nearest-even by adding c = 1.5 * 2^(P - p) times the power of two below |x|: the sum
// lies in the binade of c on either side of it, whose quantum is the format's quantum
// at x. Needs P - p >= 2, and that x + c does not overflow.
template <class C>
struct RegisterRounding {
  using Bits = typename C::Bits;
  using Float = typename C::Float;
  Bits lowest, raise, over;
  Float largest, factor;

  RegisterRounding() = default;
  explicit RegisterRounding(const Plan<C>& plan)
      : lowest(Bits(plan.emin) << Layout<C>::fraction),
        raise((Bits(plan.drop) << Layout<C>::fraction) | (Layout<C>::hidden >> 1)),
        over(plan.overflow[0]),
        largest(bit_cast<Float>(plan.largest)),
        factor(Float(__builtin_ldexp(1.5, int(plan.drop)))) {}

  template <Level level, Form form = kAdding>
  LOWPREC_INLINE VFloat<C> round(VFloat<C> x) const {
    using L = Layout<C>;
    VBits<C> binade = (VBits<C>)x & L::infinity;
    if (level != kFree) binade = vector_max<VBits<C>>(binade, splat<VBits<C>>(lowest));
    VFloat<C> rounded;
    if (form == kFusing && level != kGuarded) {
      const VFloat<C> scale = splat<VFloat<C>>(factor);
      rounded = fused(-(VFloat<C>)binade, scale, fused((VFloat<C>)binade, scale, x));
    } else {
      // For infinities the addition of `raise` wraps around to a tiny number, which
      // leaves them as they are.
      const VFloat<C> c = (VFloat<C>)(binade + raise);
      rounded = (x + c) - c;
    }
    return finish<level>(x, rounded);
  }

  // The exact product rounded: one fused addition of c, which a product rounded to the
  // lanes selects. If that product lies a binade above the exact one, it is a power of
  // two, and either quantum leads to it.
  template <Level level>
  LOWPREC_INLINE VFloat<C> round_product(VFloat<C> a, VFloat<C> b) const {
    using L = Layout<C>;
    const VFloat<C> near = a * b;
    VBits<C> binade = (VBits<C>)near & L::infinity;
    if (level != kFree) binade = vector_max<VBits<C>>(binade, splat<VBits<C>>(lowest));
    const VFloat<C> c = (VFloat<C>)(binade + raise);
    return finish<level>(near, fused(a, b, c) - c);
  }

 private:
  // `rounded` with the sign of x, and overflow, as far as the level asks for them.
  template <Level level>
  LOWPREC_INLINE VFloat<C> finish(VFloat<C> x, VFloat<C> rounded) const {
    using L = Layout<C>;
    // Without underflow sums are never -0, and the sign of a zero term is irrelevant.
    if (level == kFree || level == kUnsigned) return rounded;
    const VBits<C> sign = (VBits<C>)x & L::sign;
    const VFloat<C> with_sign = (VFloat<C>)((VBits<C>)rounded | sign);
    if (level == kClamped) return with_sign;
    if (level == kSaturating) return at_most(with_sign, splat<VFloat<C>>(largest));
    const VFloat<C> size = (VFloat<C>)((VBits<C>)rounded & Bits(L::sign - 1));
    const VFloat<C> kept = size > largest ? (VFloat<C>)splat<VBits<C>>(over) : size;
    return (VFloat<C>)((VBits<C>)kept | sign);
  }
};

#if defined(__AVX512F__)
template <class C>
struct Directed;

#define LOWPREC_DIRECTED(carrier, vector, suffix, integers, mask)                    \
  template <>                                                                        \
  struct Directed<carrier> {                                                         \
    using V = VFloat<carrier>;                                                       \
    static constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;           \
    static constexpr int up = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;             \
    static LOWPREC_INLINE V odd(vector low, vector high) {                           \
      const mask is_odd =                                                            \
          _mm512_test_##integers##_mask((__m512i)low, _mm512_set1_##integers(1));    \
      return (V)_mm512_mask_blend_##suffix(is_odd, high, low);                       \
    }                                                                                \
    static LOWPREC_INLINE V sum(V a, V b) {                                          \
      return odd(_mm512_add_round_##suffix((vector)a, (vector)b, down),              \
                 _mm512_add_round_##suffix((vector)a, (vector)b, up));               \
    }                                                                                \
    static LOWPREC_INLINE V fused(V a, V b, V c) {                                   \
      return odd(_mm512_fmadd_round_##suffix((vector)a, (vector)b, (vector)c, down), \
                 _mm512_fmadd_round_##suffix((vector)a, (vector)b, (vector)c, up));  \
    }                                                                                \
  };
LOWPREC_DIRECTED(Binary32, __m512, ps, epi32, __mmask16)
LOWPREC_DIRECTED(Binary64, __m512d, pd, epi64, __mmask8)
#undef LOWPREC_DIRECTED
#endif

template <class C>
LOWPREC_INLINE VFloat<C> odd_sum(VFloat<C> a, VFloat<C> b) {
#if defined(__AVX512F__)
  return Directed<C>::sum(a, b);
#else
  const Pair<C> exact = two_sum<C>(a, b);
  return to_odd<C>(exact.sum, exact.error);
#endif
}

// The product must be exact unless kDirected.
template <class C>
LOWPREC_INLINE VFloat<C> odd_fused(VFloat<C> a, VFloat<C> b, VFloat<C> c) {
#if defined(__AVX512F__)
  return Directed<C>::fused(a, b, c);
#else
  return odd_sum<C>(c, a * b);
#endif
}

template <class C>
struct Kernel {
  RegisterRounding<C> sum, product;
};

// A step: total <- fl(total + term). Exact products are fused with the addition.
template <Exactness add, Level level>
struct FusedStep {
  template <class C, Form form>
  static LOWPREC_INLINE VFloat<C> apply(const Kernel<C>& kernel, VFloat<C> total,
                                        VFloat<C> a, VFloat<C> b) {
    const VFloat<C> sum = add == kOdd ? odd_fused<C>(a, b, total) : fused(a, b, total);
    return kernel.sum.template round<level, form>(sum);
  }
};

// `product`: kOdd if products are not numbers of the lanes.
template <Exactness product, Level product_level, Exactness add, Level level>
struct RoundedStep {
  template <class C, Form form>
  static LOWPREC_INLINE VFloat<C> apply(const Kernel<C>& kernel, VFloat<C> total,
                                        VFloat<C> a, VFloat<C> b) {
    constexpr Form other = form == kAdding ? kFusing : kAdding;
    const VFloat<C> term =
        product == kOdd ? kernel.product.template round_product<product_level>(a, b)
                        : kernel.product.template round<product_level, other>(a * b);
    const VFloat<C> sum = add == kOdd ? odd_sum<C>(total, term) : total + term;
    return kernel.sum.template round<level, form>(sum);
  }
};

// The lanes' own fused addition: no rounding but theirs.
struct NativeStep {
  template <class C, Form form>
  static LOWPREC_INLINE VFloat<C> apply(const Kernel<C>&, VFloat<C> total, VFloat<C> a,
                                        VFloat<C> b) {
    return fused(a, b, total);
  }
};

// The sums of a tile take half of the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kNarrowRows = kTileRows / 2;
constexpr int kTileVectors = 2;
template <class C>
constexpr int64_t kTileWidth = kTileVectors * C::lanes;
template <class C>
constexpr int64_t kTileOutputs = kTileRows * kTileWidth<C>;

// Adds `terms` terms to a tile of sums [row][column], or to +0 if `fresh`; a is packed
// [term][row], b [term][column].
template <class C>
struct Tile {
  const typename C::Float* a;
  const typename C::Float* b;
  typename C::Float* sums;
  int64_t terms;
  bool fresh;
};

template <class C, class Step, int rows>
void add_terms(const Kernel<C>& shared, const Tile<C>& tile) {
  using V = VFloat<C>;
  const Kernel<C> kernel = shared;
  V total[rows][kTileVectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v)
      total[r][v] =
          tile.fresh ? V{} : load<V>(tile.sums + r * kTileWidth<C> + v * C::lanes);
  const typename C::Float* a = tile.a;
  const typename C::Float* b = tile.b;
  for (int64_t k = 0; k < tile.terms; ++k, a += rows, b += kTileWidth<C>) {
    V right[kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) right[v] = load<V>(b + v * C::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const V left = a[r] - V{};  // of every lane; keeps a negative zero
      static_assert(kTileVectors == 2, "one vector of each form");
      constexpr Form second = kFused ? kFusing : kAdding;
      V* sums = total[r];
      sums[0] = Step::template apply<C, kAdding>(kernel, sums[0], left, right[0]);
      sums[1] = Step::template apply<C, second>(kernel, sums[1], left, right[1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v)
      store(tile.sums + r * kTileWidth<C> + v * C::lanes, total[r][v]);
}

// total <- fl(total + partial): the end of a block of terms.
template <class C, Exactness add, Level level>
void combine_tile(const Kernel<C>& shared, typename C::Float* total,
                  const typename C::Float* partial) {
  using V = VFloat<C>;
  const Kernel<C> kernel = shared;
  for (int64_t i = 0; i < kTileOutputs<C>; i += C::lanes) {
    const V before = load<V>(total + i), term = load<V>(partial + i);
    const V sum = add == kOdd ? odd_sum<C>(before, term) : before + term;
    store(total + i, kernel.sum.template round<level>(sum));
  }
}

template <class C>
using AddTerms = void (*)(const Kernel<C>&, const Tile<C>&);
template <class C>
using CombineTile = void (*)(const Kernel<C>&, typename C::Float*,
                             const typename C::Float*);

LOWPREC_END
