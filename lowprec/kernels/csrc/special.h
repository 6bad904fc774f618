// Roundings that are those to another format but for a few numbers: without a zero,
// with one number more on the negative side, without 2^emin.
#pragma once
#include "stochastic.h"
#include "threshold.h"

LOWPREC_BEGIN

constexpr int64_t kFinished = kAsymmetric | kNoZero | kNoPower;
constexpr int64_t kChunk = 2048;  // elements that are finished while a cache has them

// The rounding whose results `Finish` turns into those of `code`.
inline Code unfinished(const Code& code) {
  Code plain = code;
  plain.flags &= ~(kFinished | kAlternating | kTapered);
  if (code.flags & kAsymmetric) {
    plain.emax += 1;
    plain.max_significand = int64_t(1) << (code.precision - 1);
  }
  return plain;
}

template <class C>
struct Finish {
  using Bits = typename C::Bits;
  using Float = typename C::Float;
  using Int = typename C::Int;
  using L = Layout<C>;
  Plan<C> plan;
  Code code;
  Threshold threshold;
  Bits smallest;  // that follows 2^emin, where this is no value; else 0
  Float highest, least;
  bool asymmetric, no_zero;

  Finish(const Code& given, const Plan<C>& shared)
      : plan(shared),
        code(given),
        threshold(given),
        smallest(0),
        highest(0),
        least(0),
        asymmetric(given.flags & kAsymmetric),
        no_zero(given.flags & kNoZero) {
    if (given.flags & kNoPower)
      smallest = (Bits(code.emin + C::bias) << L::fraction) +
                 (Bits(1) << (C::precision - code.precision));
    if (asymmetric)
      highest = Float(double(code.max_significand) *
                      __builtin_ldexp(1.0, int(code.emax - code.precision + 1)));
    if (no_zero) least = Float(__builtin_ldexp(1.0, int(code.emin)));
  }

  // Whether the carrier has the numbers that this takes.
  static bool valid(const Code& code) {
    return !(code.flags & kNoPower) ||
           (code.precision <= C::precision && code.emin > 1 - C::bias &&
            code.emin < C::bias);
  }

  // Numbers and what became of them. Random words are found where they are needed:
  // those of the elements from `first` on.
  void apply(const Bits* x, Bits* out, int64_t count, uint64_t seed,
             uint64_t first) const {
    const Finish self = *this;  // cannot alias the output
    each_vector<VBits<C>, VBits<C>>(
        out, out, count, [&](VBits<C> rounded, int64_t i) LOWPREC_LAMBDA {
          if (self.smallest) {
            VBits<C> given = {};
            const int64_t some = smaller<int64_t>(C::lanes, count - i);
            memcpy(&given, x + i, size_t(some) * sizeof(Bits));
            const VBits<C> below = (given & Bits(L::sign - 1)) - Bits(1);
            const VInt<C> small =
                ((VInt<C>)below >= Int(0)) &
                ((VInt<C>)below < (VInt<C>)splat<VBits<C>>(self.smallest - Bits(1)));
            if (__builtin_expect(any<VInt<C>>(small), false))
              rounded =
                  self.with_small(given, rounded, small, seed, first + uint64_t(i));
          }
          VFloat<C> value = (VFloat<C>)rounded;
          if (self.asymmetric)
            value = value > self.highest ? splat<VFloat<C>>(self.highest) : value;
          if (self.no_zero)
            value = value == Float(0) ? splat<VFloat<C>>(self.least) : value;
          return (VBits<C>)value;
        });
  }

  // `rounded`, but in the lanes of `small`, where 0 and `smallest` are neighbours.
  __attribute__((noinline)) VBits<C> with_small(VBits<C> x, VBits<C> rounded,
                                                VInt<C> small, uint64_t seed,
                                                uint64_t index) const {
    uint32_t words[4 * kLanes * kGroups + 4] = {};
    const bool random = stochastic(code);
    if (random) philox_far(index >> 2, seed, words);
    for (int lane = 0; lane < C::lanes; ++lane) {
      if (!small[lane]) continue;
      const bool negative = (x[lane] & L::sign) != 0;
      const Bits size = x[lane] & Bits(L::sign - 1);
      const uint32_t word = random ? words[int(index & 3) + lane] : 0;
      const Bits result = up(size, negative, word) ? smallest : Bits(0);
      const Bits sign = negative ? L::sign & (result ? L::sign : plan.keep_sign) : 0;
      rounded[lane] = negative && result && plan.unsigned_format ? plan.below
                                                                 : result | sign;
    }
    return rounded;
  }

  bool up(Bits size, bool negative, uint32_t word) const {
    const Bits half = smallest - L::hidden;
    switch (code.mode) {
      case kNearestEven:
      case kNearestZero:
        return size > half;
      case kNearestAway:
        return size >= half;
      case kTowardPositive:
        return !negative;
      case kTowardNegative:
        return negative;
      case kTowardZero:
        return false;
      case kToOdd:
        return true;
      case kStochasticEqual:
        return word >> 31;
      default: {
        // In units of the smallest number's quantum products are exact.
        const Threshold::Bound bound = threshold.of(word);
        const double step = double((int64_t(1) << (code.precision - 1)) + 1);
        const double scaled = __builtin_ldexp(double(bit_cast<Float>(size)),
                                              int(code.precision - 1 - code.emin));
        const double reached = bound.fraction * step;
        return bound.strict ? scaled > reached : scaled >= reached;
      }
    }
  }
};

LOWPREC_END
