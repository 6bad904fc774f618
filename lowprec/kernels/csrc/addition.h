// One step of many sums at once: total <- fl(total + term), the exact sum rounded once.
//
// The sum and its error (TwoSum) are exact in binary64. Moving the sum to its neighbour
// with an odd last bit when the error is not zero (round to odd) keeps all that a second
// rounding to at most 51 bits needs, in every mode and in the subnormal range.
//
// The file is compiled with -ffp-contract=off and without -ffast-math: each line below
// is one IEEE operation.
#pragma once
#include "rounding.h"

LOWPREC_BEGIN

using Plan64 = Plan<Binary64>;

using Doubles = VFloat<Binary64>;
using Words64 = VBits<Binary64>;
using Mask64 = VInt<Binary64>;
constexpr int kDoubles = Binary64::lanes;

struct Pair {
  Doubles sum, error;
};

LOWPREC_INLINE Pair two_sum(Doubles a, Doubles b) {
  const Doubles sum = a + b;
  const Doubles shadow = sum - a;
  return {sum, (a - (sum - shadow)) + (b - shadow)};
}

// The value sum + error rounded to odd; an infinite or NaN sum comes with a NaN error.
LOWPREC_INLINE Doubles to_odd(Doubles sum, Doubles error) {
  const Mask64 bits = (Mask64)sum;
  const Mask64 even = (bits & 1) - 1;
  const Mask64 move = ((error > 0.0) | (error < 0.0)) & even;
  // Toward the error: away from zero (+1) if the signs agree, else toward zero (-1).
  const Mask64 step = ((bits ^ (Mask64)error) >> 63) | 1;
  return (Doubles)(bits + (step & move));
}

LOWPREC_INLINE Mask64 is_finite(Doubles x) {
  const int64_t infinity = Layout<Binary64>::infinity;
  return ((Mask64)x & infinity) != infinity;
}

// A sum of finite terms beyond binary64 is its largest number, which is odd.
LOWPREC_INLINE Doubles without_overflow(Doubles sum, Doubles a, Doubles b) {
  return (Doubles)((Mask64)sum + (~is_finite(sum) & is_finite(a) & is_finite(b)));
}

LOWPREC_INLINE Doubles add_to_odd(Doubles a, Doubles b) {
  const Pair exact = two_sum(a, b);
  return without_overflow(to_odd(exact.sum, exact.error), a, b);
}

// total + (term + error) rounded to odd, where term + error is an exact product
// (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008, with the
// final sum rounded to odd as well).
LOWPREC_INLINE Doubles add_pair_to_odd(Doubles total, Doubles term, Doubles error) {
  const Pair low = two_sum(total, error);
  const Pair high = two_sum(term, low.sum);
  const Doubles sticky = add_to_odd(high.error, low.error);
  const Doubles result = add_to_odd(high.sum, sticky);
  // Infinities, NaN and the sign of an exact zero are those of the plain sum; without
  // an error the plain sum is all there is.
  const Doubles plain = add_to_odd(total, term);
  const Mask64 special =
      (error == 0.0) | ~is_finite(plain) | ~is_finite(high.sum) | (result == 0.0);
  return special ? plain : result;
}

// IEEE 754 section 6.3: toward negative, exact zero sums are -0 unless both are +0.
LOWPREC_INLINE Doubles negative_zero(Doubles sum, Doubles a, Doubles b) {
  const Mask64 positive = ((Mask64)a | (Mask64)b) == 0;
  return (sum == 0.0) & ~positive ? splat<Doubles>(0.0) * -1.0 : sum;
}

// What a row function needs besides the numbers; `error` is null for narrow products.
struct Row {
  const double* term;
  const double* error;
  const uint32_t* words;  // stochastic modes only
  int64_t count;          // a multiple of kPadding
};

template <int64_t mode, int64_t variant, bool wide>
void add_row(double* total, const Row& shared_row, const Plan64& shared) {
  const Plan64 plan = shared;
  const Row row = shared_row;
  for (int64_t i = 0; i < row.count; i += kDoubles) {
    const Doubles before = load<Doubles>(total + i), term = load<Doubles>(row.term + i);
    Doubles sum = wide ? add_pair_to_odd(before, term, load<Doubles>(row.error + i))
                       : add_to_odd(before, term);
    if (mode == kTowardNegative) sum = negative_zero(sum, before, term);
    Words64 words = {};
    if (mode >= kStochastic) words = load_words<Binary64>(row.words + i);
    store(total + i, round_bits<Binary64, mode, variant>((Words64)sum, plan, words));
  }
}

// out <- fl(term + error): roundings of products.
template <int64_t mode, int64_t variant, bool wide>
void round_row(double* out, const Row& shared_row, const Plan64& shared) {
  const Plan64 plan = shared;
  const Row row = shared_row;
  for (int64_t i = 0; i < row.count; i += kDoubles) {
    Doubles exact = load<Doubles>(row.term + i);
    if (wide) exact = to_odd(exact, load<Doubles>(row.error + i));
    Words64 words = {};
    if (mode >= kStochastic) words = load_words<Binary64>(row.words + i);
    store(out + i, round_bits<Binary64, mode, variant>((Words64)exact, plan, words));
  }
}

using RowFunction = void (*)(double*, const Row&, const Plan64&);

#define LOWPREC_SELECT(function, wide)                                \
  switch (code.mode) {                                                \
    case kNearestEven:                                                \
      return function<kNearestEven, kA, wide>;                        \
    case kNearestAway:                                                \
      return function<kNearestAway, kA, wide>;                        \
    case kNearestZero:                                                \
      return function<kNearestZero, kA, wide>;                        \
    case kTowardPositive:                                             \
      return function<kTowardPositive, kA, wide>;                     \
    case kTowardNegative:                                             \
      return function<kTowardNegative, kA, wide>;                     \
    case kTowardZero:                                                 \
      return function<kTowardZero, kA, wide>;                         \
    case kToOdd:                                                      \
      return function<kToOdd, kA, wide>;                              \
    case kStochasticEqual:                                            \
      return function<kStochasticEqual, kA, wide>;                    \
    default:                                                          \
      if (code.variant == kA) return function<kStochastic, kA, wide>; \
      if (code.variant == kB) return function<kStochastic, kB, wide>; \
      return function<kStochastic, kC, wide>;                         \
  }

template <bool wide>
RowFunction select_add(const Code& code) {
  LOWPREC_SELECT(add_row, wide)
}

template <bool wide>
RowFunction select_round(const Code& code) {
  LOWPREC_SELECT(round_row, wide)
}

#undef LOWPREC_SELECT

LOWPREC_END
