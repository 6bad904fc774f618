// One step of many sums at once: total <- fl(total + term), the exact sum rounded once.
//
// The sum and its error (TwoSum) are exact in binary64. Moving the sum to its neighbour
// with an odd last bit when the error is not zero (round to odd) keeps all that a
// second rounding to at most 51 bits needs, in every mode and in the subnormal range.
//
// The file is compiled with -ffp-contract=off and without -ffast-math: each line below
// is one IEEE operation.
#pragma once
#include "floor.h"
#include "rounding.h"

LOWPREC_BEGIN

using Plan64 = Plan<Binary64>;

using Doubles = VFloat<Binary64>;
using Words64 = VBits<Binary64>;
using Mask64 = VInt<Binary64>;
constexpr int kDoubles = Binary64::lanes;

template <class C>
struct Pair {
  VFloat<C> sum, error;
};

template <class C>
LOWPREC_INLINE Pair<C> two_sum(VFloat<C> a, VFloat<C> b) {
  const VFloat<C> sum = a + b;
  const VFloat<C> shadow = sum - a;
  return {sum, (a - (sum - shadow)) + (b - shadow)};
}

// The value sum + error rounded to odd; an infinite or NaN sum comes with a NaN error.
template <class C>
LOWPREC_INLINE VFloat<C> to_odd(VFloat<C> sum, VFloat<C> error) {
  using Int = typename C::Int;
  const VFloat<C> zero = {};
  const VInt<C> bits = (VInt<C>)sum;
  const VInt<C> even = (bits & Int(1)) - Int(1);
  const VInt<C> move = ((error > zero) | (error < zero)) & even;
  // Toward the error: away from zero (+1) if the signs agree, else toward zero (-1).
  const VInt<C> step = ((bits ^ (VInt<C>)error) >> Int(C::width - 1)) | Int(1);
  return (VFloat<C>)(bits + (step & move));
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
  const Pair<Binary64> exact = two_sum<Binary64>(a, b);
  return without_overflow(to_odd<Binary64>(exact.sum, exact.error), a, b);
}

// total + (term + error) rounded to odd, where term + error is an exact product
// (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008, with the
// final sum rounded to odd as well).
LOWPREC_INLINE Doubles add_pair_to_odd(Doubles total, Doubles term, Doubles error) {
  const Pair<Binary64> low = two_sum<Binary64>(total, error);
  const Pair<Binary64> high = two_sum<Binary64>(term, low.sum);
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

// The constants of a rounding.
struct RowRounding {
  Plan64 plan;
  Floor<Binary64> floor;  // valid if the row functions were selected so

  RowRounding(const Code& code, const Plan64& p) : plan(p), floor(code, p) {}
};

// What a row function needs besides the numbers; `error` is null for narrow products.
struct Row {
  const double* term;
  const double* error;
  const uint32_t* words;  // stochastic modes only
  int64_t count;          // a multiple of kPadding
};

template <int64_t mode, int64_t variant, bool cheap>
LOWPREC_INLINE Words64 round_lanes(Doubles x, const RowRounding& rounding,
                                   const uint32_t* words) {
  Words64 random = {};
  if (mode >= kStochastic) random = load_words<Binary64>(words);
  if (cheap) return rounding.floor.round<mode, variant>((Words64)x, random);
  return round_bits<Binary64, mode, variant>((Words64)x, rounding.plan, random);
}

// What is known of the terms: their sums cannot overflow binary64 (those of float32
// products), or they may, or the terms come with errors.
enum Terms { kSmall, kHuge, kPairs };

template <int64_t mode, int64_t variant, Terms terms, bool cheap>
void add_row(double* total, const Row& shared_row, const RowRounding& shared) {
  const RowRounding rounding = shared;  // local copies cannot alias the output
  const Row row = shared_row;
  for (int64_t i = 0; i < row.count; i += kDoubles) {
    const Doubles before = load<Doubles>(total + i), term = load<Doubles>(row.term + i);
    Doubles sum;
    if (terms == kPairs) {
      sum = add_pair_to_odd(before, term, load<Doubles>(row.error + i));
    } else if (terms == kHuge) {
      sum = add_to_odd(before, term);
    } else {
      const Pair<Binary64> exact = two_sum<Binary64>(before, term);
      sum = to_odd<Binary64>(exact.sum, exact.error);
    }
    if (mode == kTowardNegative) sum = negative_zero(sum, before, term);
    store(total + i, round_lanes<mode, variant, cheap>(sum, rounding, row.words + i));
  }
}

// out <- fl(term + error): roundings of products.
template <int64_t mode, int64_t variant, bool wide, bool cheap>
void round_row(double* out, const Row& shared_row, const RowRounding& shared) {
  const RowRounding rounding = shared;
  const Row row = shared_row;
  for (int64_t i = 0; i < row.count; i += kDoubles) {
    Doubles exact = load<Doubles>(row.term + i);
    if (wide) exact = to_odd<Binary64>(exact, load<Doubles>(row.error + i));
    store(out + i, round_lanes<mode, variant, cheap>(exact, rounding, row.words + i));
  }
}

using RowFunction = void (*)(double*, const Row&, const RowRounding&);

struct RowFunctions {
  RowFunction add, round;
};

template <int64_t mode, int64_t variant, bool cheap>
RowFunctions rows_for(Terms terms) {
  if (terms == kPairs)
    return {add_row<mode, variant, kPairs, cheap>,
            round_row<mode, variant, true, cheap>};
  return {terms == kHuge ? add_row<mode, variant, kHuge, cheap>
                         : add_row<mode, variant, kSmall, cheap>,
          round_row<mode, variant, false, cheap>};
}

template <int64_t mode, int64_t variant = kA>
RowFunctions rows_of(Terms terms, bool cheap) {
  return cheap ? rows_for<mode, variant, true>(terms)
               : rows_for<mode, variant, false>(terms);
}

inline RowFunctions select_rows(const Code& code, const Plan64& plan, Terms terms) {
  const bool cheap = Floor<Binary64>::applies(code, plan);
  switch (code.mode) {
    case kNearestAway:
      return rows_of<kNearestAway>(terms, cheap);
    case kNearestZero:
      return rows_of<kNearestZero>(terms, cheap);
    case kTowardPositive:
      return rows_of<kTowardPositive>(terms, cheap);
    case kTowardNegative:
      return rows_of<kTowardNegative>(terms, cheap);
    case kTowardZero:
      return rows_of<kTowardZero>(terms, cheap);
    case kToOdd:
      return rows_of<kToOdd>(terms, cheap);
    case kStochasticEqual:
      return rows_of<kStochasticEqual>(terms, cheap);
    case kStochastic:
      if (code.variant == kB) return rows_of<kStochastic, kB>(terms, cheap);
      if (code.variant == kC) return rows_of<kStochastic, kC>(terms, cheap);
      return rows_of<kStochastic, kA>(terms, cheap);
    default:
      return rows_of<kNearestEven>(terms, cheap);
  }
}

LOWPREC_END
