// Rounding in every mode by floating-point operations, without variable shifts.
//
// As in grid.h, (|x| + c) - c is |x| rounded to a multiple of the quantum q;
// one q less where that exceeds |x| gives the multiple below, and what remains of |x|
// is exact. Comparing the remainder with q decides the direction: all integers in those
// comparisons are exact.
#pragma once
#include "rounding.h"

LOWPREC_BEGIN

template <class C>
struct Floor {
  using Bits = typename C::Bits;
  using Float = typename C::Float;
  Bits lowest, raise, beyond, over[2], infinite[2], lost;
  Float largest;
  Bits random_bits;

  // The quantum must be a normal number of the carrier, and c must not overflow.
  static bool applies(const Code& code, const Plan<C>& plan) {
    return !plan.gap && !plan.deep && plan.drop >= 1 && !plan.unsigned_format &&
           plan.emin + plan.drop >= C::precision &&
           code.emax + 1 + plan.drop <= C::bias;
  }

  Floor(const Code& code, const Plan<C>& plan)
      : lowest(Bits(plan.emin) << Layout<C>::fraction),
        raise(Bits(plan.drop) << Layout<C>::fraction),
        beyond(Bits(code.emax + 1 + C::bias) << Layout<C>::fraction),
        over{plan.overflow[0], plan.overflow[1]},
        infinite{plan.infinite[0], plan.infinite[1]},
        lost(Bits(Layout<C>::sign & ~plan.keep_sign)),
        largest(bit_cast<Float>(plan.largest)),
        random_bits(Bits(plan.random_bits)) {}

  // Multiplies lanes by a power of two, staying normal.
  static LOWPREC_INLINE VFloat<C> scaled(VFloat<C> x, int exponent) {
    return x * bit_cast<Float>(Bits(Bits(C::bias + exponent) << Layout<C>::fraction));
  }

  // Whether floor(nu 2^r), rounded as the variant says, plus R is at least 2^r.
  template <int64_t variant>
  LOWPREC_INLINE VInt<C> stochastic_up(VFloat<C> nu, VBits<C> word) const;

  template <int64_t mode, int64_t variant = kA>
  LOWPREC_INLINE VBits<C> round(VBits<C> bits, VBits<C> word = VBits<C>{}) const {
    using L = Layout<C>;
    using Int = typename C::Int;
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    const VInt<C> negative = (VInt<C>)bits < Int(0);
    const VBits<C> clamped = vector_min<VBits<C>>(magnitude, splat<VBits<C>>(beyond));
    const VFloat<C> size = (VFloat<C>)clamped;
    const VBits<C> c =
        vector_max<VBits<C>>(clamped & L::infinity, splat<VBits<C>>(lowest)) + raise;
    const VFloat<C> q =
        (VFloat<C>)(c - (Bits(C::precision - 1) << Layout<C>::fraction));
    const VFloat<C> near = (size + (VFloat<C>)c) - (VFloat<C>)c;
    VFloat<C> rounded = near;
    if (mode != kNearestEven) {
      const VFloat<C> zero = {};
      const VFloat<C> below = near - (near > size ? q : zero);
      const VFloat<C> rest = size - below;
      VInt<C> up = {};
      if (mode == kNearestAway) up = rest + rest >= q;
      if (mode == kNearestZero) up = rest + rest > q;
      if (mode == kTowardPositive) up = (rest > zero) & ~negative;
      if (mode == kTowardNegative) up = (rest > zero) & negative;
      if (mode == kToOdd)
        up = (rest > zero) & (((VInt<C>)(below + (VFloat<C>)c) & Int(1)) == Int(0));
      if (mode == kStochasticEqual) up = (rest > zero) & (word >> Bits(31) != Bits(0));
      if (mode == kStochastic) {
        // 1 / q: the exponents of q and of its reciprocal add up to twice the bias.
        const VFloat<C> reciprocal =
            (VFloat<C>)((Bits(2 * C::bias) << L::fraction) - (VBits<C>)q);
        up = stochastic_up<variant>(rest * reciprocal, word);
      }
      rounded = below + (up ? q : zero);
    }
    VBits<C> sign = bits & L::sign;
    const VBits<C> over_signed =
        negative ? splat<VBits<C>>(over[1]) : splat<VBits<C>>(over[0]);
    const VBits<C> infinite_signed =
        negative ? splat<VBits<C>>(infinite[1]) : splat<VBits<C>>(infinite[0]);
    const VInt<C> zero_result = (VBits<C>)rounded == Bits(0);
    VBits<C> result = (VBits<C>)rounded | (sign & ~(lost & (VBits<C>)zero_result));
    result = rounded > largest ? over_signed : result;
    result = magnitude == L::infinity ? infinite_signed : result;
    return magnitude > L::infinity ? bits : result;
  }
};

// In binary64 the threshold 2^r - R is exact: compare nu 2^r with it. An integer is
// reached by floor(x) iff it is reached by x; by RNE(x) iff x exceeds it less one half,
// or equals that and the integer is even.
template <>
template <int64_t variant>
LOWPREC_INLINE VInt<Binary64> Floor<Binary64>::stochastic_up(
    VFloat<Binary64> nu, VBits<Binary64> word) const {
  using B = Binary64;
  const VBits<B> random = word >> (32 - random_bits);
  const VBits<B> needed = (uint64_t(1) << random_bits) - random;
  // Integers below 2^52 are converted by writing them into the significand of 2^52.
  const VFloat<B> base = splat<VFloat<B>>(0x1p52);
  const VFloat<B> threshold = (VFloat<B>)((VBits<B>)base | needed) - base;
  const VFloat<B> scaled_nu = scaled(nu, int(random_bits));
  if (variant == kA) return scaled_nu >= threshold;
  const VFloat<B> half_less = threshold - 0.5;
  if (variant == kB) return scaled_nu >= half_less;
  return (scaled_nu > half_less) | ((scaled_nu == half_less) & ((needed & 1) == 0));
}

// In binary32 floor(nu 2^r) is converted to an integer, exactly; variant A only.
template <>
template <int64_t variant>
LOWPREC_INLINE VInt<Binary32> Floor<Binary32>::stochastic_up(
    VFloat<Binary32> nu, VBits<Binary32> word) const {
  static_assert(variant == kA, "other variants take the general path");
  using B = Binary32;
  const VFloat<B> whole = scaled(nu, int(random_bits));
#if defined(__AVX512F__)
  const VBits<B> fraction = (VBits<B>)_mm512_cvttps_epu32((__m512)whole);
#else
  // Signed conversions in two parts: whole < 2^32.
  const VInt<B> high = __builtin_convertvector(scaled(whole, -16), VInt<B>);
  const VFloat<B> rest = whole - scaled(__builtin_convertvector(high, VFloat<B>), 16);
  const VInt<B> low = __builtin_convertvector(rest, VInt<B>);
  const VBits<B> fraction = ((VBits<B>)high << 16) + (VBits<B>)low;
#endif
  const VBits<B> random = word >> (32 - random_bits);
  const uint32_t mask = uint32_t((uint64_t(1) << random_bits) - 1);
  return random > mask - fraction;
}

LOWPREC_END
