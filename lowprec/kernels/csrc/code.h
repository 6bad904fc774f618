// A rounding as nine integers (lowprec/kernels/codes.py) and the constants that the
// loops derive from it once per call.
#pragma once
#include "carrier.h"

namespace lowprec {

enum : int64_t {
  kSubnormals = 1,
  kInfinities = 2,
  kNans = 4,
  kSigned = 8,
  kSignedZero = 16,
  kAsymmetric = 32,
  kAlternating = 64,
  kNoZero = 128,
  kNoPower = 256,
  kTapered = 512
};
enum Mode : int64_t {
  kNearestEven,
  kNearestAway,
  kNearestZero,
  kTowardPositive,
  kTowardNegative,
  kTowardZero,
  kToOdd,
  kStochastic,
  kStochasticEqual
};
enum Saturation : int64_t { kNone, kFinite, kPropagate, kWrap };
enum Variant : int64_t { kA, kB, kC };
enum Order : int64_t { kSequential, kBlocked, kPairwise, kKahan };
enum Purpose : uint32_t {
  kPurposeRound,
  kPurposeProduct,
  kPurposeAdd,
  kPurposeCombine,
  kPurposeKahanTerm,
  kPurposeKahanDifference,
  kPurposeKahanCorrection
};

struct Code {
  int64_t precision, emin, emax, max_significand, flags, mode, saturation, random_bits,
      variant;
};

// `valid` and `Plan` know no flags from kAsymmetric on, and no kWrap: elementwise.h
// reduces such roundings to others.

// What the entry points return; native.py turns them into exceptions.
enum Status : int {
  kOk = 0,
  kCarrierTooNarrow = 1,  // the carrier cannot hold every value of the format
  kTooPrecise = 2,        // exact sums cannot be rounded correctly to so many bits
  kBadArgument = 3,
  kProductRange = 4  // exact products may leave the range of binary64
};

}  // namespace lowprec

LOWPREC_BEGIN

inline bool valid(const Code& c) {
  return c.precision >= 1 && c.precision <= 62 && c.max_significand >= 1 &&
         c.emin <= c.emax && c.flags >= 0 && c.flags < 32 && c.mode >= 0 &&
         c.mode <= kStochasticEqual && c.saturation >= 0 &&
         c.saturation <= kPropagate && c.random_bits >= 1 && c.random_bits <= 32 &&
         c.variant >= 0 && c.variant <= kC;
}

inline bool stochastic(const Code& c) { return c.mode >= kStochastic; }

// Magnitude bits of the format's largest finite value in carrier C.
template <class C>
Status largest_bits(const Code& code, typename C::Bits* result) {
  using Bits = typename C::Bits;
  if (code.emax > C::bias && code.emin <= C::bias && code.precision >= C::precision) {
    *result = Layout<C>::infinity - 1;  // nothing in the carrier overflows or rounds up
    return kOk;
  }
  const int width = 64 - __builtin_clzll((uint64_t)code.max_significand);
  const int excess = width > C::precision ? width - C::precision : 0;
  const uint64_t below = (uint64_t(1) << excess) - 1;
  if (code.emax > C::bias || code.emin > C::bias || (code.max_significand & below) ||
      code.emax < 1 - C::bias) {
    return kCarrierTooNarrow;
  }
  const uint64_t exact = (uint64_t)code.max_significand >> excess;
  const uint64_t significand = exact << (C::precision - width + excess);
  const uint64_t field = (uint64_t)(code.emax + C::bias);
  *result = Bits((field << (C::precision - 1)) + significand - Layout<C>::hidden);
  return kOk;
}

// Constants of one rounding, in the integer type of the carrier's bits.
template <class C>
struct Plan {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  Int emin;          // biased as the carrier's exponent field; below 1: see `deep`
  Int drop;          // low bits dropped from a normal number's significand
  Bits largest;      // magnitude of the largest finite value
  Bits overflow[2];  // result for finite values beyond it, [sign]
  Bits infinite[2];  // result for infinite values, [sign]
  Bits below;        // result for negative values of an unsigned format
  Bits keep_sign;    // the sign bit, or 0 if zeros lose it
  Bits random_mask;  // 2^random_bits - 1
  Int random_bits;
  bool gap;   // no subnormals: nothing between 0 and 2^emin
  bool deep;  // carrier subnormals are normal numbers of the format
  bool unsigned_format;
  bool alternating;  // powers of two are odd and even in turn; special.h sets it
  Int odd_parity;    // of the biased exponents of the odd ones
};

template <class C>
Status make_plan(const Code& code, Plan<C>* plan) {
  using Bits = typename C::Bits;
  using L = Layout<C>;
  if (!valid(code)) return kBadArgument;
  Bits largest = 0;
  const Status status = largest_bits<C>(code, &largest);
  if (status != kOk) return status;

  // Exponents below every carrier number act alike, so they are clamped into range.
  const int64_t emin = code.emin + C::bias;
  const int64_t floor = -4 * C::precision;
  plan->emin = typename C::Int(emin < floor ? floor : emin);
  plan->drop = typename C::Int(C::precision - code.precision);
  plan->largest = largest;
  plan->gap = !(code.flags & kSubnormals);
  plan->deep = emin < 1;
  plan->unsigned_format = !(code.flags & kSigned);
  plan->keep_sign = code.flags & kSignedZero ? L::sign : 0;
  plan->alternating = false;
  plan->odd_parity = typename C::Int(emin & 1);
  plan->random_bits = typename C::Int(code.random_bits);
  plan->random_mask = Bits((uint64_t(1) << code.random_bits) - 1);

  Bits infinity = largest;
  if (code.flags & kNans) infinity = L::quiet_nan;
  if (code.flags & kInfinities) infinity = L::infinity;
  for (int negative = 0; negative < 2; ++negative) {
    const Bits sign = negative ? L::sign : 0;
    const bool inward = code.mode == kTowardZero || code.mode == kToOdd ||
                        code.mode == (negative ? kTowardPositive : kTowardNegative);
    const bool clamp = code.saturation != kNone || inward;
    plan->overflow[negative] = sign | (clamp ? largest : infinity);
    plan->infinite[negative] = sign | (code.saturation == kFinite ? largest : infinity);
  }
  plan->below = 0;
  if (plan->unsigned_format) {
    const Bits outside = code.flags & kNans ? L::quiet_nan : 0;
    plan->below = code.saturation == kNone ? outside : 0;
    plan->overflow[1] = plan->below;
    plan->infinite[1] = code.saturation == kFinite ? 0 : outside;
  }
  return kOk;
}

LOWPREC_END
