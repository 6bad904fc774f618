// Cheaper loops for common roundings. Each says when it equals round_bits.
#pragma once
#include "floor.h"
#include "loops.h"
#include "rounding.h"

LOWPREC_BEGIN

// Overflow and infinite inputs give one and the same magnitude, whatever the sign.
template <class C>
bool simple_overflow(const Plan<C>& plan) {
  const auto size = Layout<C>::sign - 1;
  return !plan.unsigned_format &&
         (plan.overflow[0] & size) == (plan.overflow[1] & size) &&
         (plan.overflow[0] & size) == (plan.infinite[0] & size);
}

// ---- Nearest-even by adding a power of two
// -------------------------------------------
//
// With c = 2^(P - p) times the power of two below |x| (at least 2^emin), |x| + c lies
// in the binade of c, where the carrier's quantum is the format's quantum at x. So the
// carrier's own rounding to nearest-even is the wanted one, and subtracting c is exact.
// Ties agree because c is an even multiple of the quantum. Values beyond 2^(emax+1) are
// replaced by it, so that c does not overflow; it overflows in the format as they do.

template <class C>
bool magic_applies(const Code& code, const Plan<C>& plan) {
  return code.mode == kNearestEven && !plan.gap && !plan.deep && plan.drop >= 1 &&
         simple_overflow(plan) && code.emax + 1 + plan.drop <= C::bias;
}

template <class C>
struct Magic {
  using Bits = typename C::Bits;
  Bits lowest, beyond, raise, largest, over, lost;

  Magic(const Code& code, const Plan<C>& plan)
      : lowest(Bits(plan.emin) << Layout<C>::fraction),
        beyond(Bits(code.emax + 1 + C::bias) << Layout<C>::fraction),
        raise(Bits(plan.drop) << Layout<C>::fraction),
        largest(plan.largest),
        over(plan.overflow[0]),
        lost(Bits(Layout<C>::sign & ~plan.keep_sign)) {}

  // Comparisons are those of the bits, which order non-negative numbers as they are.
  template <bool keeps_signed_zeros>
  LOWPREC_INLINE VBits<C> round(VBits<C> bits) const {
    using L = Layout<C>;
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    const VBits<C> clamped = vector_min<VBits<C>>(magnitude, splat<VBits<C>>(beyond));
    const VBits<C> binade = clamped & L::infinity;
    const VFloat<C> c =
        (VFloat<C>)(vector_max<VBits<C>>(binade, splat<VBits<C>>(lowest)) + raise);
    const VBits<C> rounded = (VBits<C>)(((VFloat<C>)clamped + c) - c);
    VBits<C> sign = bits & L::sign;
    if (!keeps_signed_zeros) sign &= ~((VBits<C>)(rounded == Bits(0)) & lost);
    const VBits<C> result =
        (rounded > splat<VBits<C>>(largest) ? splat<VBits<C>>(over) : rounded) | sign;
    return magnitude > L::infinity ? bits : result;
  }
};

template <class C, bool keeps_signed_zeros>
void magic_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                const Code& code, const Plan<C>& plan) {
  const Magic<C> magic(code, plan);
  for_vectors<C>(x, out, count, [magic](VBits<C> bits, int64_t) LOWPREC_LAMBDA {
    return magic.template round<keeps_signed_zeros>(bits);
  });
}

// ---- Formats with the carrier's exponent range
// ---------------------------------------
//
// The number of dropped bits is then the same for every input, subnormals included, and
// rounding is an addition to the bits and a mask; carries are right by themselves.

template <class C>
bool same_range(const Plan<C>& plan) {
  // Two or more bits are kept: with one, the last kept bit is the implicit one.
  return !plan.gap && plan.emin == 1 && plan.drop >= 1 &&
         plan.drop <= C::precision - 2 && !plan.unsigned_format && plan.keep_sign;
}

// Overflow is what a carry into the carrier's infinity gives.
template <class C>
bool natural_overflow(const Code& code, const Plan<C>& plan) {
  using L = Layout<C>;
  const auto unit = typename C::Bits(1) << (plan.drop < 1 ? 0 : plan.drop);
  return code.saturation == kNone && code.flags & kInfinities && code.emax == C::bias &&
         plan.largest == L::infinity - unit;
}

template <class C, int64_t mode, bool natural>
void mask_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
               const Code&, const Plan<C>& plan) {
  using Bits = typename C::Bits;
  using L = Layout<C>;
  const Bits drop = Bits(plan.drop), unit = Bits(1) << drop, half = unit >> 1;
  const Bits largest = plan.largest, over = plan.overflow[0] & (L::sign - 1);
  for_vectors<C>(x, out, count, [=](VBits<C> bits, int64_t) LOWPREC_LAMBDA {
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    const VBits<C> negative = (VBits<C>)((VInt<C>)bits < typename C::Int(0));
    // With natural overflow the sign may stay in the sum: nothing carries into it but
    // NaN, which is kept in the end.
    VBits<C> sum = natural ? bits : magnitude;
    if (mode == kNearestEven) sum += ((bits >> drop) & Bits(1)) + Bits(half - 1);
    if (mode == kNearestAway) sum += half;
    if (mode == kNearestZero) sum += Bits(half - 1);
    if (mode == kTowardPositive) sum += ~negative & Bits(unit - 1);
    if (mode == kTowardNegative) sum += negative & Bits(unit - 1);
    if (mode == kToOdd) sum |= (VBits<C>)((bits & Bits(unit - 1)) != Bits(0)) & unit;
    VBits<C> result = sum & Bits(~(unit - 1));
    if (!natural)
      result = (result > largest ? splat<VBits<C>>(over) : result) | (bits & L::sign);
    return magnitude > L::infinity ? bits : result;
  });
}

// Stochastic: the random bits, aligned with the dropped ones, are added. This is
// variant A; the others equal it when there are as many random bits as dropped ones.
template <class C>
void mask_words(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                const Code&, const Plan<C>& plan, const uint32_t* words) {
  using Bits = typename C::Bits;
  using L = Layout<C>;
  const Bits drop = Bits(plan.drop), random_bits = Bits(plan.random_bits);
  const Bits used = drop < random_bits ? drop : random_bits;
  const Bits right = 32 - used, left = drop - used, keep = ~((Bits(1) << drop) - 1);
  for_vectors<C>(x, out, count, [=](VBits<C> bits, int64_t i) LOWPREC_LAMBDA {
    const VBits<C> random = (load_words<C>(words + i) >> right) << left;
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    return magnitude > L::infinity ? bits : (bits + random) & keep;
  });
}

template <class C>
using RoundPart = void (*)(const typename C::Bits*, typename C::Bits*, int64_t,
                           const Code&, const Plan<C>&);

template <class C>
RoundPart<C> fast_natural(int64_t mode) {
  switch (mode) {
    case kNearestAway:
      return mask_part<C, kNearestAway, true>;
    case kNearestZero:
      return mask_part<C, kNearestZero, true>;
    case kTowardPositive:
      return mask_part<C, kTowardPositive, true>;
    case kTowardNegative:
      return mask_part<C, kTowardNegative, true>;
    case kTowardZero:
      return mask_part<C, kTowardZero, true>;
    case kToOdd:
      return mask_part<C, kToOdd, true>;
    default:
      return mask_part<C, kNearestEven, true>;
  }
}

template <class C>
RoundPart<C> fast_floor(int64_t mode) {
  switch (mode) {
    case kNearestAway:
      return floor_part<C, kNearestAway>;
    case kNearestZero:
      return floor_part<C, kNearestZero>;
    case kTowardPositive:
      return floor_part<C, kTowardPositive>;
    case kTowardNegative:
      return floor_part<C, kTowardNegative>;
    case kTowardZero:
      return floor_part<C, kTowardZero>;
    case kToOdd:
      return floor_part<C, kToOdd>;
    default:
      return floor_part<C, kNearestEven>;
  }
}

// The cheap loop for this rounding, or null.
template <class C>
RoundPart<C> fast_rounding(const Code& code, const Plan<C>& plan) {
  if (same_range(plan)) {
    if (natural_overflow(code, plan)) return fast_natural<C>(code.mode);
    if (code.mode == kNearestEven && simple_overflow(plan))
      return mask_part<C, kNearestEven, false>;
  }
  if (magic_applies(code, plan))
    return plan.keep_sign ? magic_part<C, true> : magic_part<C, false>;
  return Floor<C>::applies(code, plan) ? fast_floor<C>(code.mode) : nullptr;
}

template <class C>
using RoundWords = void (*)(const typename C::Bits*, typename C::Bits*, int64_t,
                            const Code&, const Plan<C>&, const uint32_t*);

template <class C>
RoundWords<C> fast_stochastic(const Code& code, const Plan<C>& plan) {
  const bool additive = code.variant == kA || code.random_bits >= plan.drop;
  if (code.mode == kStochastic && additive && same_range(plan) &&
      natural_overflow(code, plan)) {
    return mask_words<C>;
  }
  if (!Floor<C>::applies(code, plan)) return nullptr;
  if (code.mode == kStochasticEqual) return floor_words<C, kStochasticEqual, kA>;
  return code.variant == kA ? floor_words<C, kStochastic, kA> : nullptr;
}

LOWPREC_END
