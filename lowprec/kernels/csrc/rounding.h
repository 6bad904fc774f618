// Rounding one number by integer operations only: the path that is always right.
//
// A finite carrier value is significand * 2^lsb. Rounding drops `shift` low bits of the
// significand, chosen so that the format's quantum remains, and decides by the dropped
// bits whether to step up. There are no branches, so loops over it vectorise; no
// floating-point operation takes part, so the floating-point environment is irrelevant.
#pragma once
#include "code.h"

LOWPREC_BEGIN

// floor(nu 2^r), rounded as the variant says, compared with the random number:
// up iff fraction + R >= 2^r, written so that nothing exceeds the lane.
template <class C, int64_t variant>
LOWPREC_INLINE bool stochastic_up(const Plan<C>& plan, typename C::Bits dropped,
                                  typename C::Int shift, uint32_t word) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  const Int last = C::width - 1;
  const Int spare = shift - plan.random_bits;  // fraction bits below the random ones
  const Int down = smaller(larger(spare, Int(0)), last);
  const Int up = smaller(larger(Int(-spare), Int(0)), last);
  Bits fraction = (dropped >> down) << up;
  if (variant == kB) {  // nearest, ties up: the bit below decides
    const Int next = smaller(larger(Int(spare - 1), Int(0)), last);
    fraction += spare > 0 ? (dropped >> next) & 1 : 0;
  }
  if (variant == kC) {  // nearest, ties to even
    const Bits unit = Bits(1) << down;
    const Bits rest = dropped & (unit - 1);
    fraction += (rest + (fraction & 1) > (unit >> 1)) & (spare > 0);
  }
  const Bits random = Bits(word >> (32 - plan.random_bits));
  return (fraction > plan.random_mask) | (random > plan.random_mask - fraction);
}

// Biased exponent of a carrier subnormal, by converting it to a normal number.
template <class C>
LOWPREC_INLINE typename C::Int subnormal_exponent(typename C::Bits magnitude) {
  using Bits = typename C::Bits;
  const Bits one = Bits(C::bias + C::precision - 1) << (C::precision - 1);
  const auto scaled = bit_cast<typename C::Float>(Bits(one | magnitude)) -
                      bit_cast<typename C::Float>(one);
  const auto field = typename C::Int(bit_cast<Bits>(scaled) >> (C::precision - 1));
  return field - (C::bias + C::precision - 2);
}

template <class C, int64_t mode, int64_t variant = kA>
LOWPREC_INLINE typename C::Bits round_bits(typename C::Bits bits, const Plan<C>& plan,
                                           uint32_t word = 0) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using L = Layout<C>;
  const Bits magnitude = bits & (L::sign - 1);
  const bool negative = bits != magnitude;

  const Int field = Int(magnitude >> L::fraction);
  const Bits significand =
      field == 0 ? magnitude : (magnitude & (L::hidden - 1)) | L::hidden;
  const Int lsb = larger(field, Int(1));  // biased exponent of the significand's scale
  Int exponent = lsb;                     // biased exponent of the value itself
  if (plan.deep) exponent = field == 0 ? subnormal_exponent<C>(magnitude) : exponent;

  Int shift = larger(exponent, plan.emin) - lsb + plan.drop;
  if (plan.gap) {
    // Carrier subnormals are below every normal `emin`, though `exponent` says 1.
    const bool tiny = (exponent < plan.emin) | ((field == 0) & !plan.deep);
    shift = tiny ? Int(plan.emin - lsb + C::precision - 1) : shift;
  }

  // Significands have two or more bits less than a lane, so at this clamp the dropped
  // fraction is still less than one half.
  const Int clamped = smaller(larger(shift, Int(0)), Int(C::width - 2));
  const Bits unit = Bits(1) << clamped;
  const Bits dropped = significand & (unit - 1);
  const Bits half = (unit >> 1) | Bits(shift <= 0);  // shift 0: no fraction reaches it
  const Bits odd = (significand >> clamped) & 1;
  bool up = false;
  if (mode == kNearestEven) up = dropped + odd > half;
  if (mode == kNearestAway) up = dropped >= half;
  if (mode == kNearestZero) up = dropped > half;
  if (mode == kTowardPositive) up = (dropped != 0) & !negative;
  if (mode == kTowardNegative) up = (dropped != 0) & negative;
  if (mode == kToOdd) up = (dropped != 0) & (odd == 0);
  if (mode == kStochastic) up = stochastic_up<C, variant>(plan, dropped, shift, word);
  if (mode == kStochasticEqual) up = (dropped != 0) & (word >> 31 != 0);

  // In the carrier's bits a carry out of the fraction is the next binade.
  const Bits near = (magnitude & (Bits(0) - unit)) + (up ? unit : 0);
  // If the quantum exceeds the value's own binade, 0 and one quantum are the candidates.
  const Bits quantum = Bits(shift + lsb - (C::precision - 1)) << L::fraction;
  const Bits rounded = shift >= C::precision ? (up ? quantum : 0) : near;

  const Bits sign = bits ^ magnitude;
  Bits result = rounded | (rounded == 0 ? sign & plan.keep_sign : sign);
  if (plan.unsigned_format) result = negative & (rounded != 0) ? plan.below : result;
  const Bits over = negative ? plan.overflow[1] : plan.overflow[0];
  const Bits infinite = negative ? plan.infinite[1] : plan.infinite[0];
  result = rounded > plan.largest ? over : result;
  result = magnitude == L::infinity ? infinite : result;
  return magnitude > L::infinity ? bits : result;  // NaN is kept, payload and all
}

LOWPREC_END
