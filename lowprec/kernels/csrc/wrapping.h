// Rounding to fixed point modulo a power of two.
#pragma once
#include "special.h"

LOWPREC_BEGIN

template <class C>
struct Wrapping {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using Float = typename C::Float;
  using L = Layout<C>;
  Plan<C> plan;
  Int quantum;  // biased exponent of one unit
  Int unused;   // high bits of a lane beyond the word
  Float unit;
  bool is_signed;
  Bits special[2];  // of infinity, [sign]

  Wrapping(const Code& code, const Plan<C>& shared)
      : plan(shared),
        quantum(Int(code.emin - code.precision + 1 + C::bias)),
        unused(Int(C::width - width_of(code))),
        unit(Float(__builtin_ldexp(1.0, int(code.emin - code.precision + 1)))),
        is_signed(code.flags & kSigned),
        special{shared.infinite[0], shared.infinite[1]} {
    if (code.flags & kAsymmetric)
      special[0] = bit_cast<Bits>(Finish<C>(code, shared).highest);
  }

  static int64_t width_of(const Code& code) {
    return code.precision + (code.flags & kSigned ? 1 : 0);
  }

  // Whether counts fit lanes, and exactly the carrier.
  static bool valid(const Code& code) {
    const int64_t lowest = code.emin - code.precision + 1;
    return code.emin == code.emax && !(code.flags & (kInfinities | kNans)) &&
           code.precision <= C::precision &&
           width_of(code) < C::width && lowest >= 2 - C::bias - C::precision &&
           code.emax < C::bias;
  }

  template <int64_t mode, int64_t variant = kA>
  LOWPREC_INLINE VBits<C> round(VBits<C> bits, VBits<C> word = VBits<C>{}) const {
    const VInt<C> negative = (VInt<C>)bits < Int(0), none = {};
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    const VInt<C> field = (VInt<C>)(magnitude >> Bits(L::fraction));
    const VInt<C> subnormal = field == Int(0);
    const VBits<C> significand =
        (magnitude & Bits(L::hidden - 1)) | (~(VBits<C>)subnormal & L::hidden);
    const VInt<C> shift = quantum + Int(L::fraction) - (field - subnormal);
    const VBits<C> right = (VBits<C>)vector_min<VInt<C>>(
        vector_max<VInt<C>>(shift, none), splat<VInt<C>>(Int(C::width - 2)));
    const VBits<C> left = (VBits<C>)vector_min<VInt<C>>(
        vector_max<VInt<C>>(-shift, none), splat<VInt<C>>(Int(C::width - 1)));
    const VBits<C> step = splat<VBits<C>>(Bits(1)) << right;
    const VBits<C> dropped = significand & (step - Bits(1));
    const VBits<C> odd = (significand >> right) & Bits(1);
    const VInt<C> up =
        steps_up<C, mode, variant>(plan, dropped, step, shift, odd, negative, word);
    // What leaves the lane is a multiple of 2^word.
    VBits<C> count = ((significand >> right) - (VBits<C>)up) << left;
    count &= ~(VBits<C>)(-shift > Int(C::width - 1));
    count = (count ^ (VBits<C>)negative) - (VBits<C>)negative;
    const VInt<C> shifted = (VInt<C>)(count << Bits(unused));
    const VInt<C> word_value = is_signed ? shifted >> unused
                                         : (VInt<C>)((VBits<C>)shifted >> Bits(unused));
    // Exact: the carrier holds every value of the format.
    const VBits<C> result =
        (VBits<C>)(__builtin_convertvector(word_value, VFloat<C>) * unit);
    const VBits<C> infinite =
        negative ? splat<VBits<C>>(special[1]) : splat<VBits<C>>(special[0]);
    const VBits<C> rest = magnitude == L::infinity ? infinite : bits;
    return magnitude >= L::infinity ? rest : result;
  }
};

template <class C, int64_t mode>
void wrapping_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                   const Code& code, const Plan<C>& plan, bool) {
  struct Rounding {
    Wrapping<C> wrapping;
    LOWPREC_INLINE VBits<C> exact(VBits<C> bits) const {
      return wrapping.template round<mode>(bits);
    }
  };
  exact_vectors<C>(x, out, count, Rounding{Wrapping<C>(code, plan)});
}

template <class C, int64_t mode, int64_t variant>
void wrapping_words(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                    const Code& code, const Plan<C>& plan, uint64_t seed,
                    uint64_t first) {
  struct Rounding : AlwaysExact<C> {
    Wrapping<C> wrapping;
    explicit Rounding(const Wrapping<C>& given) : wrapping(given) {}
    LOWPREC_INLINE VBits<C> exact(VBits<C> bits, VBits<C> word) const {
      return wrapping.template round<mode, variant>(bits, word);
    }
  };
  for_random_vectors<C>(x, out, count, seed, first, Rounding(Wrapping<C>(code, plan)));
}

template <class C>
RoundPart<C> wrapping_rounding(int64_t mode) {
  switch (mode) {
    case kNearestAway:
      return wrapping_part<C, kNearestAway>;
    case kNearestZero:
      return wrapping_part<C, kNearestZero>;
    case kTowardPositive:
      return wrapping_part<C, kTowardPositive>;
    case kTowardNegative:
      return wrapping_part<C, kTowardNegative>;
    case kTowardZero:
      return wrapping_part<C, kTowardZero>;
    case kToOdd:
      return wrapping_part<C, kToOdd>;
    default:
      return wrapping_part<C, kNearestEven>;
  }
}

template <class C>
WordsPart<C> wrapping_stochastic(const Code& code) {
  if (code.mode == kStochasticEqual) return wrapping_words<C, kStochasticEqual, kA>;
  if (code.variant == kB) return wrapping_words<C, kStochastic, kB>;
  if (code.variant == kC) return wrapping_words<C, kStochastic, kC>;
  return wrapping_words<C, kStochastic, kA>;
}

LOWPREC_END
