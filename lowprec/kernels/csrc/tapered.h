// Rounding to posits by integer operations.
//
// A carrier number is the integer of its exponent and fraction. Behind the regime a
// posit has the same bits, as many as have room, so rounding drops low bits of that
// integer, the more the longer the regime is.
#pragma once
#include "loops.h"
#include "rounding.h"
#include "stochastic.h"
#include "threshold.h"

LOWPREC_BEGIN

template <class C>
struct Tapered {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using L = Layout<C>;
  Plan<C> plan;
  Threshold threshold;
  Int widest;              // room behind the shortest regime
  Int exponent_bits;       // es
  Bits smallest, largest;  // positive posits
  Bits lowest, highest;    // between them fractions are cut, but no exponent bits

  Tapered(const Code& code, const Plan<C>& shared)
      : plan(shared),
        threshold(code),
        widest(Int(code.precision - 3)),
        exponent_bits(exponent_bits_of(code)),
        smallest(power(code.emin)),
        largest(shared.largest),
        lowest(power((exponent_bits - 1 - widest) * (int64_t(1) << exponent_bits))),
        highest(power((widest - exponent_bits + 1) * (int64_t(1) << exponent_bits)) -
                1) {}

  static Int exponent_bits_of(const Code& code) {
    Int bits = 0;
    while (bits < 4 && ((code.precision - 2) << bits) < code.emax) ++bits;
    return bits;
  }

  static bool valid(const Code& code) {
    return code.precision >= 2 && code.precision <= 32 && code.emin == -code.emax &&
           code.emax == (code.precision - 2) << exponent_bits_of(code);
  }

  // Whether carrier C has the ends, as normal numbers, and all bits of the posits near
  // 1, which have most.
  static bool fits(const Code& code) {
    return code.emax < C::bias &&
           code.precision - 2 - exponent_bits_of(code) <= C::precision;
  }

  static Bits power(int64_t exponent) {
    return Bits(exponent + C::bias) << L::fraction;
  }

  // Whether a lane's neighbours are powers of two that are not neighbours, or it is
  // beyond the largest.
  template <int count>
  LOWPREC_INLINE bool hard(const VBits<C>* vectors) const {
    VInt<C> found = {};
#pragma GCC unroll 16
    for (int v = 0; v < count; ++v) {
      const VInt<C> size = (VInt<C>)(vectors[v] & Bits(L::sign - 1));
      found |= size > (VInt<C>)splat<VBits<C>>(highest);
      found |= (size >= (VInt<C>)splat<VBits<C>>(smallest)) &
               (size < (VInt<C>)splat<VBits<C>>(lowest));
    }
    return any<VInt<C>>(found);
  }

  template <int64_t mode, int64_t variant = kA, bool wide = false>
  LOWPREC_INLINE VBits<C> round(VBits<C> bits, VBits<C> word = VBits<C>{}) const {
    const VInt<C> negative = (VInt<C>)bits < Int(0);
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    const VInt<C> size = (VInt<C>)magnitude;
    const VInt<C> least = (VInt<C>)splat<VBits<C>>(smallest);
    const VInt<C> most = (VInt<C>)splat<VBits<C>>(largest);
    const VBits<C> inside =
        (VBits<C>)vector_min<VInt<C>>(vector_max<VInt<C>>(size, least), most);
    const VInt<C> exponent = (VInt<C>)(inside >> Bits(L::fraction)) - Int(C::bias);
    const VInt<C> regime = exponent >> exponent_bits;
    const VInt<C> none = {};
    const VInt<C> length = regime ^ (regime < Int(0));
    const VInt<C> room = vector_max<VInt<C>>(widest - length, none);
    VInt<C> shift = Int(L::fraction) + exponent_bits - room;
    const VBits<C> unit = splat<VBits<C>>(Bits(1)) << (VBits<C>)shift;
    // One more than the bias is a multiple of 2^es: exponent bits are in their place.
    const VBits<C> aligned = inside + L::hidden;
    VBits<C> dropped = aligned & (unit - Bits(1));
    const VBits<C> kept = aligned - dropped - L::hidden;
    // Without room the code ends with the regime's last bit, which tells its sign.
    VBits<C> odd = (VBits<C>)(room > Int(0) ? (VInt<C>)((aligned & unit) != Bits(0))
                                            : (VInt<C>)(exponent < Int(0)));

    // Between 0 and the smallest posit what is kept is 0, and nothing rounds to it.
    const VInt<C> tiny = size < least;
    odd &= ~(VBits<C>)tiny & Bits(1);
    if (mode == kStochastic) {
      const VInt<C> field = (VInt<C>)(magnitude >> Bits(L::fraction));
      const VInt<C> subnormal = field == Int(0);
      const VBits<C> significand =
          (magnitude & Bits(L::hidden - 1)) | (~(VBits<C>)subnormal & L::hidden);
      const VInt<C> distance = Int((smallest >> L::fraction) + L::fraction) -
                               (field - subnormal);
      dropped = tiny ? significand : dropped;
      shift = tiny ? distance : shift;
    } else {
      dropped |= (VBits<C>)tiny & (unit - Bits(1));
    }
    VInt<C> up =
        steps_up<C, mode, variant>(plan, dropped, unit, shift, odd, negative, word);
    if (wide) {
      const VInt<C> far = ~tiny & (shift > Int(L::fraction));
      up = up_between_powers(inside, kept, unit, far, word, up);
    }
    const VBits<C> low = tiny ? VBits<C>{} : kept;
    const VBits<C> step = tiny ? splat<VBits<C>>(smallest) : unit;
    VBits<C> result = low + (step & (VBits<C>)up);
    result = magnitude == Bits(0) ? VBits<C>{} : result;
    result |= result == Bits(0) ? VBits<C>{} : bits & L::sign;
    return size >= (VInt<C>)splat<VBits<C>>(L::infinity)
               ? splat<VBits<C>>(L::quiet_nan)
               : result;
  }

  // Decides exactly in the lanes of `wide`.
  __attribute__((noinline)) VInt<C> up_between_powers(VBits<C> inside, VBits<C> kept,
                                                      VBits<C> unit, VInt<C> wide,
                                                      VBits<C> word, VInt<C> up) const {
    for (int lane = 0; lane < C::lanes; ++lane) {
      if (!wide[lane]) continue;
      const double x = bit_cast<typename C::Float>(Bits(inside[lane]));
      const double low = bit_cast<typename C::Float>(Bits(kept[lane]));
      const double high = bit_cast<typename C::Float>(Bits(kept[lane] + unit[lane]));
      const double distance = x - low;
      const double error = (x - distance) - low;  // exact: low <= x
      // The gap has as many bits as 2^es, so this product is exact.
      const Threshold::Bound bound = threshold.of(uint32_t(word[lane]));
      const double reached = (high - low) * bound.fraction;
      const bool over = distance > reached || (distance == reached && error > 0);
      const bool same = distance == reached && error == 0;
      up[lane] = x != low && (over || (same && !bound.strict)) ? Int(-1) : Int(0);
    }
    return up;
  }
};

template <class C, int64_t mode>
void tapered_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                  const Code& code, const Plan<C>& plan, bool) {
  struct Rounding {
    Tapered<C> tapered;
    LOWPREC_INLINE VBits<C> exact(VBits<C> bits) const {
      return tapered.template round<mode>(bits);
    }
  };
  exact_vectors<C>(x, out, count, Rounding{Tapered<C>(code, plan)});
}

template <class C, int64_t mode, int64_t variant>
struct TaperedWords {
  Tapered<C> tapered;
  template <int vectors>
  LOWPREC_INLINE bool hard(const VBits<C>* some) const {
    return mode == kStochastic && tapered.template hard<vectors>(some);
  }
  LOWPREC_INLINE VBits<C> fast(VBits<C> bits, VBits<C> word) const {
    return tapered.template round<mode, variant>(bits, word);
  }
  LOWPREC_INLINE VBits<C> exact(VBits<C> bits, VBits<C> word) const {
    return tapered.template round<mode, variant, mode == kStochastic>(bits, word);
  }
};

template <class C, int64_t mode, int64_t variant>
void tapered_words(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                   const Code& code, const Plan<C>& plan, uint64_t seed,
                   uint64_t first) {
  const TaperedWords<C, mode, variant> rounding = {Tapered<C>(code, plan)};
  for_random_vectors<C>(x, out, count, seed, first, rounding);
}

template <class C>
RoundPart<C> tapered_rounding(int64_t mode) {
  switch (mode) {
    case kNearestAway:
      return tapered_part<C, kNearestAway>;
    case kNearestZero:
      return tapered_part<C, kNearestZero>;
    case kTowardPositive:
      return tapered_part<C, kTowardPositive>;
    case kTowardNegative:
      return tapered_part<C, kTowardNegative>;
    case kTowardZero:
      return tapered_part<C, kTowardZero>;
    case kToOdd:
      return tapered_part<C, kToOdd>;
    default:
      return tapered_part<C, kNearestEven>;
  }
}

template <class C>
WordsPart<C> tapered_stochastic(const Code& code) {
  if (code.mode == kStochasticEqual) return tapered_words<C, kStochasticEqual, kA>;
  if (code.variant == kB) return tapered_words<C, kStochastic, kB>;
  if (code.variant == kC) return tapered_words<C, kStochastic, kC>;
  return tapered_words<C, kStochastic, kA>;
}

LOWPREC_END
