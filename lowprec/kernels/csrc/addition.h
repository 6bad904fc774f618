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

struct Pair {
  double sum, error;
};

LOWPREC_INLINE Pair two_sum(double a, double b) {
  const double sum = a + b;
  const double shadow = sum - a;
  return {sum, (a - (sum - shadow)) + (b - shadow)};
}

// The value sum + error rounded to odd; an infinite or NaN sum comes with a NaN error.
LOWPREC_INLINE double to_odd(double sum, double error) {
  const uint64_t bits = bit_cast<uint64_t>(sum);
  const bool move = ((error > 0) | (error < 0)) & ((bits & 1) == 0);
  // Toward the error: away from zero if the signs agree, else toward zero.
  const uint64_t opposite = (bits ^ bit_cast<uint64_t>(error)) >> 63;
  return bit_cast<double>(bits + (move ? 1 - 2 * opposite : 0));
}

LOWPREC_INLINE bool finite(double x) {
  return (bit_cast<uint64_t>(x) & Layout<Binary64>::infinity) !=
         Layout<Binary64>::infinity;
}

// A sum of finite terms beyond binary64 is its largest number, which is odd.
LOWPREC_INLINE double without_overflow(double sum, double a, double b) {
  const uint64_t bits = bit_cast<uint64_t>(sum);
  const bool overflow = !finite(sum) & finite(a) & finite(b);
  return bit_cast<double>(overflow ? bits - 1 : bits);
}

LOWPREC_INLINE double add_to_odd(double a, double b) {
  const Pair exact = two_sum(a, b);
  return without_overflow(to_odd(exact.sum, exact.error), a, b);
}

// total + (term + error) rounded to odd, where term + error is an exact product
// (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008, with the
// final sum rounded to odd as well).
LOWPREC_INLINE double add_pair_to_odd(double total, double term, double error) {
  const Pair low = two_sum(total, error);
  const Pair high = two_sum(term, low.sum);
  const double sticky = add_to_odd(high.error, low.error);
  const double result = add_to_odd(high.sum, sticky);
  // Infinities, NaN and the sign of an exact zero are those of the plain sum; without
  // an error the plain sum is all there is.
  const double plain = add_to_odd(total, term);
  const bool special = (error == 0) | !finite(plain) | !finite(high.sum) | (result == 0);
  return special ? plain : result;
}

// IEEE 754 section 6.3: toward negative, exact zero sums are -0 unless both are +0.
LOWPREC_INLINE double negative_zero(double sum, double a, double b) {
  const bool positive = (bit_cast<uint64_t>(a) | bit_cast<uint64_t>(b)) == 0;
  return (sum == 0) & !positive ? -0.0 : sum;
}

// What a row function needs besides the numbers; `error` is null for narrow products.
struct Row {
  const double* term;
  const double* error;
  const uint32_t* words;  // stochastic modes only
  int64_t count;
};

template <int64_t mode, int64_t variant, bool wide>
void add_row(double* total, const Row& row, const Plan64& shared) {
  const Plan64 plan = shared;
  const double* term = row.term;
  const double* error = row.error;
  const uint32_t* words = row.words;
  const int64_t count = row.count;
  LOWPREC_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    double sum = wide ? add_pair_to_odd(total[i], term[i], error[i])
                      : add_to_odd(total[i], term[i]);
    if (mode == kTowardNegative) sum = negative_zero(sum, total[i], term[i]);
    const uint32_t word = mode >= kStochastic ? words[i] : 0;
    total[i] = bit_cast<double>(
        round_bits<Binary64, mode, variant>(bit_cast<uint64_t>(sum), plan, word));
  }
}

// out <- fl(term + error): roundings of products.
template <int64_t mode, int64_t variant, bool wide>
void round_row(double* out, const Row& row, const Plan64& shared) {
  const Plan64 plan = shared;
  const double* term = row.term;
  const double* error = row.error;
  const uint32_t* words = row.words;
  const int64_t count = row.count;
  LOWPREC_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const double exact = wide ? to_odd(term[i], error[i]) : term[i];
    const uint32_t word = mode >= kStochastic ? words[i] : 0;
    out[i] = bit_cast<double>(
        round_bits<Binary64, mode, variant>(bit_cast<uint64_t>(exact), plan, word));
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
