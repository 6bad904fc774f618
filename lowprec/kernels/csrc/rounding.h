// Rounding by integer operations only: the path that is always right.
//
// A finite carrier value is significand * 2^lsb. Rounding drops `shift` low bits of the
// significand, chosen so that the format's quantum remains, and decides by the dropped
// bits whether to step up. Each line below acts on every lane of a vector; no
// floating-point rounding takes part, so the floating-point environment is irrelevant.
#pragma once
#include "code.h"

LOWPREC_BEGIN

template <class V>
LOWPREC_INLINE V vector_min(V a, V b) {
  return a < b ? a : b;
}

template <class V>
LOWPREC_INLINE V vector_max(V a, V b) {
  return a > b ? a : b;
}

// A vector with the same number in every lane.
template <class V, class T>
LOWPREC_INLINE V splat(T value) {
  return V{} + value;
}

// Which fractions reach the random number: up iff floor(nu 2^r), rounded as the variant
// says, plus R is at least 2^r; written so that nothing exceeds the lane.
template <class C, int64_t variant>
LOWPREC_INLINE VInt<C> stochastic_up(const Plan<C>& plan, VBits<C> dropped,
                                     VInt<C> shift, VBits<C> word) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  const VInt<C> zero = {}, last = splat<VInt<C>>(Int(C::width - 1));
  const VInt<C> spare =
      shift - plan.random_bits;  // fraction bits below the random ones
  const VBits<C> down =
      (VBits<C>)vector_min<VInt<C>>(vector_max<VInt<C>>(spare, zero), last);
  const VBits<C> up =
      (VBits<C>)vector_min<VInt<C>>(vector_max<VInt<C>>(-spare, zero), last);
  VBits<C> fraction = (dropped >> down) << up;
  if (variant == kB) {  // nearest, ties up: the bit below decides
    const VBits<C> next =
        (VBits<C>)vector_min<VInt<C>>(vector_max<VInt<C>>(spare - Int(1), zero), last);
    fraction += (dropped >> next) & (VBits<C>)(spare > zero) & Bits(1);
  }
  if (variant == kC) {  // nearest, ties to even
    const VBits<C> unit = splat<VBits<C>>(Bits(1)) << down;
    const VBits<C> rest = dropped & (unit - Bits(1));
    const VInt<C> nearest = rest + (fraction & Bits(1)) > (unit >> Bits(1));
    fraction -= (VBits<C>)(nearest & (spare > zero));
  }
  const VBits<C> random = word >> Bits(32 - plan.random_bits);
  const VBits<C> mask = splat<VBits<C>>(plan.random_mask);
  return (fraction > mask) | (random > mask - fraction);
}

// Biased exponents of carrier subnormals, by converting them to normal numbers.
template <class C>
LOWPREC_INLINE VInt<C> subnormal_exponent(VBits<C> magnitude) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  const VBits<C> one =
      splat<VBits<C>>(Bits(C::bias + C::precision - 1) << (C::precision - 1));
  const VFloat<C> scaled = (VFloat<C>)(one | magnitude) - (VFloat<C>)one;
  const VInt<C> field = (VInt<C>)((VBits<C>)scaled >> Bits(C::precision - 1));
  return field - Int(C::bias + C::precision - 2);
}

// How many low bits of the significand a rounding drops; may be negative or large.
template <class C>
LOWPREC_INLINE VInt<C> dropped_bits(VBits<C> magnitude, VInt<C> field, VInt<C> lsb,
                                    const Plan<C>& plan) {
  using Int = typename C::Int;
  const VInt<C> subnormal = field == Int(0);
  const VInt<C> emin = splat<VInt<C>>(plan.emin);
  VInt<C> exponent = lsb;  // biased exponent of the value itself
  if (plan.deep) exponent = subnormal ? subnormal_exponent<C>(magnitude) : lsb;
  VInt<C> shift = vector_max<VInt<C>>(exponent, emin) - lsb + plan.drop;
  if (plan.gap) {
    VInt<C> tiny = exponent < emin;
    // Carrier subnormals are below every normal `emin`, though `exponent` says 1.
    if (!plan.deep) tiny |= subnormal;
    shift = tiny ? emin - lsb + Int(C::precision - 1) : shift;
  }
  return shift;
}

// Whether to step up, away from zero, from what is kept of a number, of which `dropped`
// is lost: the last `shift` bits of an integer, less than `unit`.
template <class C, int64_t mode, int64_t variant>
LOWPREC_INLINE VInt<C> steps_up(const Plan<C>& plan, VBits<C> dropped, VBits<C> unit,
                                VInt<C> shift, VBits<C> odd, VInt<C> negative,
                                VBits<C> word) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  // Where nothing is dropped, no fraction may reach one half.
  const VBits<C> half = (unit >> Bits(1)) | ((VBits<C>)(shift <= Int(0)) & Bits(1));
  const VInt<C> inexact = dropped != Bits(0);
  VInt<C> up = {};
  if (mode == kNearestEven) up = dropped + odd > half;
  if (mode == kNearestAway) up = dropped >= half;
  if (mode == kNearestZero) up = dropped > half;
  if (mode == kTowardPositive) up = inexact & ~negative;
  if (mode == kTowardNegative) up = inexact & negative;
  if (mode == kToOdd) up = inexact & (odd == Bits(0));
  if (mode == kStochastic) up = stochastic_up<C, variant>(plan, dropped, shift, word);
  if (mode == kStochasticEqual) up = inexact & (word >> Bits(31) != Bits(0));
  return up;
}

template <class C, int64_t mode, int64_t variant = kA>
LOWPREC_INLINE VBits<C> round_bits(VBits<C> bits, const Plan<C>& plan,
                                   VBits<C> word = VBits<C>{}) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using L = Layout<C>;
  const VBits<C> magnitude = bits & Bits(L::sign - 1), sign = bits & L::sign;
  const VInt<C> negative = (VInt<C>)bits < Int(0);

  const VInt<C> field = (VInt<C>)(magnitude >> Bits(L::fraction));
  const VInt<C> subnormal = field == Int(0);
  const VBits<C> significand =
      (magnitude & Bits(L::hidden - 1)) | (~(VBits<C>)subnormal & L::hidden);
  const VInt<C> lsb = field - subnormal;  // biased exponent of the significand's scale
  const VInt<C> shift = dropped_bits<C>(magnitude, field, lsb, plan);

  // Significands have two or more bits less than a lane, so at this clamp the dropped
  // fraction is still less than one half.
  const VBits<C> clamped = (VBits<C>)vector_min<VInt<C>>(
      vector_max<VInt<C>>(shift, VInt<C>{}), splat<VInt<C>>(Int(C::width - 2)));
  const VBits<C> unit = splat<VBits<C>>(Bits(1)) << clamped;
  const VBits<C> dropped = significand & (unit - Bits(1));
  VBits<C> odd = (significand >> clamped) & Bits(1);
  if (plan.alternating) {  // the quantum is the power of two itself
    const VInt<C> quantum = shift + lsb - Int(C::precision - 1);
    odd &= ~(VBits<C>)(quantum - plan.odd_parity);
  }
  const VInt<C> up =
      steps_up<C, mode, variant>(plan, dropped, unit, shift, odd, negative, word);

  // In the carrier's bits a carry out of the fraction is the next binade.
  const VBits<C> near = (magnitude & -unit) + (unit & (VBits<C>)up);
  // If the quantum exceeds the value's own binade, 0 and one quantum are the
  // candidates.
  const VBits<C> quantum = (VBits<C>)(shift + lsb - Int(C::precision - 1))
                           << Bits(L::fraction);
  const VBits<C> rounded = shift >= Int(C::precision) ? quantum & (VBits<C>)up : near;

  const VBits<C> lost = splat<VBits<C>>(Bits(L::sign & ~plan.keep_sign));
  VBits<C> result = rounded | (sign & ~(lost & (VBits<C>)(rounded == Bits(0))));
  if (plan.unsigned_format)
    result = negative & (rounded != Bits(0)) ? splat<VBits<C>>(plan.below) : result;
  const VBits<C> over =
      negative ? splat<VBits<C>>(plan.overflow[1]) : splat<VBits<C>>(plan.overflow[0]);
  const VBits<C> infinite =
      negative ? splat<VBits<C>>(plan.infinite[1]) : splat<VBits<C>>(plan.infinite[0]);
  result = rounded > splat<VBits<C>>(plan.largest) ? over : result;
  result = magnitude == L::infinity ? infinite : result;
  return magnitude > L::infinity ? bits : result;  // NaN is kept, payload and all
}

LOWPREC_END
