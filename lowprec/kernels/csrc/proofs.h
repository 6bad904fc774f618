// Which cheap products equal the general ones, decided from facts about the operands.
#pragma once
#include "fast.h"
#include "fast_gemm.h"

LOWPREC_BEGIN

// The least e with x < 2^e, for x > 0.
inline int exponent_above(double x) { return __builtin_ilogb(x) + 1; }

// Nearest-even in signed formats with subnormals and signed zeros, where overflow and
// infinities meet the same fate.
template <class C>
bool plain_format(const Code& code, Plan<C>* plan) {
  return make_plan<C>(code, plan) == kOk && code.mode == kNearestEven && !plan->gap &&
         !plan->deep && plan->drop >= 2 && plan->keep_sign && simple_overflow(*plan) &&
         code.emin + plan->drop + 1 <= C::bias;
}

// Nearest-even in the format of the lanes.
template <class C>
bool lanes_format(const Code& code) {
  constexpr int64_t needed = kSubnormals | kInfinities | kSigned | kSignedZero;
  return code.mode == kNearestEven && code.precision == C::precision &&
         code.emin == 1 - C::bias && code.emax == C::bias &&
         code.max_significand == (int64_t(1) << C::precision) - 1 &&
         (code.flags & needed) == needed;
}

template <class C>
bool finite_overflow(const Plan<C>& plan) {
  return (plan.overflow[0] & Layout<C>::infinity) != Layout<C>::infinity;
}

// What is known of numbers: at most `bits` significant bits, multiples of 2^lowest,
// magnitudes at most `largest` unless they are infinite or NaN.
struct Range {
  int bits, lowest;
  double largest;
  bool finite;

  // The least e with largest <= 2^e; below every other exponent if all are zero.
  int above() const {
    if (largest == 0) return -4096;
    const int e = exponent_above(largest);
    return largest == __builtin_ldexp(1.0, e - 1) ? e - 1 : e;
  }
};

// A bound of every partial sum of `count` such terms, each addition rounded to p bits
// with a quantum of 2^quantum: it grows by half a quantum or by a factor 1 + 2^-p.
inline double bound_of_sums(const Range& terms, int64_t count, int p, int quantum) {
  const double growth = double(count) * __builtin_ldexp(1.0, -p);
  if (growth > 16) return __builtin_inf();
  const double half = terms.lowest >= quantum ? 0 : __builtin_ldexp(0.5, quantum);
  // exp(x) <= 1 + 2 x for x <= 1 and <= 4^x; 2^-40 covers the rounding of this line.
  const double factor =
      growth <= 1 ? 1 + 2 * growth : __builtin_ldexp(1.0, 2 * int(growth + 1));
  return double(count) * (terms.largest + half) * factor * (1 + 0x1p-40);
}

// The exponent of the least positive number of C.
template <class C>
constexpr int kLeast = 2 - C::bias - C::precision;

struct Addition {
  Exactness exactness;
  Level level;
  Range sums;
};

// Proves that adding such terms in lanes of type C, and rounding the sums with
// RegisterRounding, is what `code` defines; or says no.
//
// 1. |total| <= 2^top always. With |term| <= 2^t, t not below the quantum, and
//    top = t + p, adding a term to 2^top changes it by at most half a quantum, and
//    nearest-even returns to 2^top, which is even (if p = 1, top is one larger and the
//    change less than half a quantum). Short sums have a lower bound. So no addition in
//    the lanes overflows, that of c in RegisterRounding included.
// 2. A sum rounded to C first, to nearest, and then to p bits is rounded correctly if
//    total and term have at most p bits and C at least 2p + 1 (Figueroa), or if it is
//    exact: all of its bits lie between those of 2^top and the lowest one of terms and
//    of what replaces overflow; rounding never adds lower bits. Both need terms that
//    are numbers of C. Otherwise it is rounded to odd first, which needs C to have
//    p + 2 bits, and as many in the subnormal range: with p + 2 bits and the exponents
//    of C, the quantum of the format is at least four times that of C everywhere.
// 3. Without overflow (2^top at most 2^emax) and with all terms multiples of the
//    accumulator's quantum, its range can be forgotten: sums below 2^emin are exact.
template <class C>
bool prove_addition(const Code& code, const Plan<C>& plan, const Range& terms,
                    int64_t count, Addition* proof) {
  const int p = int(code.precision), quantum = int(code.emin) - p + 1;
  int top = larger(terms.above(), quantum) + p + (p == 1);
  const Range short_sums = {p, 0, bound_of_sums(terms, count, p, quantum), true};
  if (short_sums.largest < __builtin_inf()) top = smaller(top, short_sums.above());
  top = larger(top, quantum);
  if (top + int(plan.drop) + 2 > C::bias) return false;
  // A finite number in place of infinity may lie far above 2^top, so it must not enter
  // a sum.
  if (!terms.finite && finite_overflow(plan)) return false;
  int lowest = terms.lowest;
  const bool in_range = terms.finite && top <= code.emax;
  proof->level = lowest >= quantum ? kFree : kClamped;
  if (!in_range)
    proof->level =
        terms.finite && plan.overflow[0] == plan.largest ? kSaturating : kGuarded;
  if (!in_range) lowest = smaller(lowest, int(code.emax) - p + 1);
  const bool innocuous = terms.bits <= p && 2 * p + 1 <= C::precision;
  const bool exact_sums = top + 1 - lowest <= C::precision;
  const bool plain = terms.lowest >= kLeast<C> && (innocuous || exact_sums);
  proof->exactness = plain ? kPlain : kOdd;
  const bool finite = terms.finite && (top <= code.emax || finite_overflow(plan));
  proof->sums = {p, lowest, __builtin_ldexp(1.0, top), finite};
  return plain || p + 2 <= C::precision;
}

template <class C, class Step>
void choose(Method<C>* method) {
  method->add = add_terms<C, Step, kTileRows>;
  method->add_narrow = add_terms<C, Step, kNarrowRows>;
}

template <class C>
void choose_fused(const Addition& proof, Method<C>* method) {
  if (proof.exactness == kOdd) {
    if (proof.level == kGuarded) return choose<C, FusedStep<kOdd, kGuarded>>(method);
    if (proof.level == kSaturating)
      return choose<C, FusedStep<kOdd, kSaturating>>(method);
    return choose<C, FusedStep<kOdd, kClamped>>(method);
  }
  if (proof.level == kGuarded) return choose<C, FusedStep<kPlain, kGuarded>>(method);
  if (proof.level == kSaturating)
    return choose<C, FusedStep<kPlain, kSaturating>>(method);
  if (proof.level == kClamped) return choose<C, FusedStep<kPlain, kClamped>>(method);
  return choose<C, FusedStep<kPlain, kFree>>(method);
}

template <class C, Exactness product, Exactness add>
void choose_rounded(Level product_level, Level level, Method<C>* method) {
  if (level != kFree)
    choose<C, RoundedStep<product, kGuarded, add, kGuarded>>(method);
  else if (product_level == kFree)
    choose<C, RoundedStep<product, kFree, add, kFree>>(method);
  else  // where sums are free, zero terms may have either sign
    choose<C, RoundedStep<product, kUnsigned, add, kFree>>(method);
}

template <class C>
void choose_rounded(Exactness product, Level product_level, const Addition& proof,
                    Method<C>* method) {
  if (product == kPlain && proof.exactness == kPlain)
    choose_rounded<C, kPlain, kPlain>(product_level, proof.level, method);
  else if (product == kPlain)
    choose_rounded<C, kPlain, kOdd>(product_level, proof.level, method);
  else if (proof.exactness == kPlain)
    choose_rounded<C, kOdd, kPlain>(product_level, proof.level, method);
  else
    choose_rounded<C, kOdd, kOdd>(product_level, proof.level, method);
}

// Products of the operands; `exact` says whether they are numbers of C.
template <class C>
bool product_range(const Facts& a, const Facts& b, Range* range, bool* exact) {
  const bool zero = a.largest == 0 || b.largest == 0;
  range->bits = a.significant_bits + b.significant_bits;
  range->lowest = zero ? 0 : a.lowest_bit() + b.lowest_bit();
  range->largest = zero ? 0 : a.largest * b.largest * (1 + 0x1p-40);
  range->finite = a.finite && b.finite;
  *exact = range->bits <= C::precision && range->lowest >= kLeast<C>;
  return range->largest < __builtin_ldexp(1.0, C::bias);
}

// The rounding of products to a format of their own; `terms` becomes their range. The
// level is kFree, kClamped, or kGuarded.
template <class C>
bool prove_product(const Code& code, bool exact, Range* terms, Level* level,
                   RegisterRounding<C>* rounding) {
  const int p = int(code.precision), quantum = int(code.emin) - p + 1;
  Plan<C> plan;
  if (!plain_format<C>(code, &plan)) return false;
  if (!terms->finite && finite_overflow(plan)) return false;
  const int above = larger(terms->above(), quantum);
  if (above + int(plan.drop) + 2 > C::bias) return false;
  if (!exact && p + 2 > C::precision) return false;
  // Infinite products come from infinite operands or from rounding.
  const bool guarded = above > code.emax;
  *level = guarded ? kGuarded : terms->lowest >= quantum ? kFree : kClamped;
  const bool finite = terms->finite && (!guarded || finite_overflow(plan));
  *terms = {p, larger(terms->lowest, quantum), __builtin_ldexp(1.0, above), finite};
  if (guarded) terms->lowest = smaller(terms->lowest, int(code.emax) - p + 1);
  *rounding = RegisterRounding<C>(plan);
  return true;
}

// Whether products are rounded at all: all may be numbers of the format already.
template <class C>
bool rounds_products(const Matmul& task, const Range& terms) {
  const Code& code = task.product;
  Plan<C> plan;
  return !task.exact_products &&
         !(plain_format<C>(code, &plan) && terms.finite &&
           terms.bits <= int(code.precision) && terms.above() <= code.emax &&
           terms.lowest >= code.emin - code.precision + 1);
}

// Chooses how lanes of type C compute the product exactly as defined, or says no.
template <class C>
bool prove(const Matmul& task, const Facts& a, const Facts& b, Method<C>* method) {
  Range terms;
  bool exact;
  if (!product_range<C>(a, b, &terms, &exact)) return false;
  if (!exact && !kFused) return false;

  Level product_level = kFree;
  const bool rounded = rounds_products<C>(task, terms);
  if (rounded && !prove_product<C>(task.product, exact, &terms, &product_level,
                                   &method->within.product))
    return false;
  const int64_t size =
      task.order == kBlocked ? smaller(task.block_size, task.terms) : task.terms;
  Addition proof;
  if (task.promoted && !rounded && lanes_format<C>(task.within)) {
    terms.largest = bound_of_sums(terms, size, C::precision, kLeast<C>);
    terms.bits = C::precision;
    terms.lowest = larger(terms.lowest, kLeast<C>);
    if (!terms.finite || terms.largest >= __builtin_ldexp(1.0, C::bias)) return false;
    choose<C, NativeStep>(method);
  } else {
    Plan<C> plan;
    if (!exact && !rounded && !kDirected) return false;
    if (!plain_format<C>(task.within, &plan) ||
        !prove_addition<C>(task.within, plan, terms, size, &proof))
      return false;
    method->within.sum = RegisterRounding<C>(plan);
    terms = proof.sums;
    if (!rounded) {
      choose_fused<C>(proof, method);
    } else {
      if (product_level == kGuarded) proof.level = kGuarded;
      choose_rounded<C>(exact ? kPlain : kOdd, product_level, proof, method);
    }
  }
  if (task.order != kBlocked) return true;
  const int64_t blocks = size > 0 ? (task.terms + size - 1) / size : 0;
  Plan<C> plan;
  if (!plain_format<C>(task.accumulate, &plan) ||
      !prove_addition<C>(task.accumulate, plan, terms, blocks, &proof))
    return false;
  method->between.sum = RegisterRounding<C>(plan);
  const bool odd = proof.exactness == kOdd;
  if (proof.level == kFree || proof.level == kClamped)
    method->combine =
        odd ? combine_tile<C, kOdd, kClamped> : combine_tile<C, kPlain, kClamped>;
  else
    method->combine =
        odd ? combine_tile<C, kOdd, kGuarded> : combine_tile<C, kPlain, kGuarded>;
  return true;
}

// The bits of a sum from which kRowTerms additions cannot lead beyond `largest`: each
// adds a term and at most a quantum, which is 2^quantum or 2^(1 - p) times the sum.
inline uint32_t safe_sum(const Range& terms, int p, int quantum, float largest) {
  if (!terms.finite) return 0;
  double safe = largest;
  for (int t = 0; t < kRowTerms; ++t)
    safe = (safe - __builtin_ldexp(1.0, quantum)) / (1 + __builtin_ldexp(1.0, 1 - p)) -
           terms.largest;
  return safe > 0 ? bit_cast<uint32_t>(float(safe * (1 - 0x1p-20))) : 0;
}

// Stochastic sums of float32 numbers in their given order, whatever their range. With
// few dropped bits they often are all ones, and the general path is as fast.
// The double path rounds the sum to odd first: with p + random_bits at most 52, that
// changes no bit that takes part.
inline bool prove_stochastic(const Matmul& task, const Facts& a, const Facts& b,
                             const RowRounding* rounding, Method<Binary32>* method) {
  using C = Binary32;
  const Code& code = task.accumulate;
  const int p = int(code.precision), quantum = int(code.emin) - p + 1;
  Plan<C> plan;
  Range terms;
  bool exact;
  Level product_level = kFree;
  const uint64_t outputs = uint64_t(task.batch * task.rows * task.columns);
  // All counters must have the same high half; see RowWords.
  if ((task.offset >> 34) != (task.offset + outputs + 4096) >> 34) return false;
  if (!kDirections || task.order != kSequential || code.mode != kStochastic ||
      code.variant != kA || code.random_bits + p > 52 ||
      make_plan<C>(code, &plan) != kOk || plan.gap || plan.deep || plan.drop < 5 ||
      plan.unsigned_format || !plan.keep_sign ||
      !product_range<C>(a, b, &terms, &exact)) {
    return false;
  }
  const bool rounded = rounds_products<C>(task, terms);
  if (!exact && !kFused) return false;
  if (rounded && (!prove_product<C>(task.product, exact, &terms, &product_level,
                                    &method->within.product) ||
                  product_level == kGuarded || !terms.finite))
    return false;

  StochasticRounding& random = method->stochastic;
  const uint32_t dropped = uint32_t(plan.drop);
  random.unused = 32 - dropped;
  random.kept = ~uint32_t(0) << dropped;
  const int spare = larger(0, int(dropped) - int(code.random_bits));
  random.significant = ~random.kept & (~uint32_t(0) << spare);
  random.largest = plan.largest | ~random.kept;
  random.safe = safe_sum(terms, p, quantum, bit_cast<float>(plan.largest));
  random.lowest = float(__builtin_ldexp(1.0, int(code.emin)));
  random.add = select_rows(code, rounding->plan, kSmall).add;
  random.exact = rounding;
  const bool multiples = terms.lowest >= quantum;
  method->add_random = multiples || plan.emin == 1 ? add_random_terms<kFree>
                                                   : add_random_terms<kClamped>;
  if (!rounded) return true;
  // Sums of multiples of the quantum are never -0: zero terms may have either sign.
  if (multiples && product_level == kFree)
    method->round_products =
        exact ? round_products<kPlain, kFree> : round_products<kOdd, kFree>;
  else
    method->round_products =
        exact ? round_products<kPlain, kClamped> : round_products<kOdd, kClamped>;
  return true;
}

template <class T, class C>
bool try_lanes(const Matmul& task, const Facts& a, const Facts& b) {
  Method<C> method = {};
  if (!prove<C>(task, a, b, &method)) return false;
  if (task.columns >= kTileWidth<C> || task.columns >= task.rows) {
    run_fast<T, C>(task, method, task.columns, 1);
    return true;
  }
  // Few columns: compute the transposed product, whose rows are long.
  Matmul turned = task;
  turned.a = task.b;
  turned.a_batch = task.b_batch;
  turned.a_row = task.b_column;
  turned.a_term = task.b_term;
  turned.b = task.a;
  turned.b_batch = task.a_batch;
  turned.b_column = task.a_row;
  turned.b_term = task.a_term;
  turned.rows = task.columns;
  turned.columns = task.rows;
  run_fast<T, C>(turned, method, 1, task.columns);
  return true;
}

// Whether the product was computed. `sum` is the plan of the accumulator.
template <class T>
bool fast_matmul(const Matmul& task, const Facts& a, const Facts& b,
                 const Plan64& sum) {
  if (task.order == kPairwise || task.order == kKahan) return false;
  if (sizeof(T) == 4 && stochastic(task.accumulate)) {
    const RowRounding rounding(task.accumulate, sum);
    Method<Binary32> method = {};
    if (!prove_stochastic(task, a, b, &rounding, &method)) return false;
    run_fast<T, Binary32>(task, method, task.columns, 1);
    return true;
  }
  if (sizeof(T) == 4 && try_lanes<T, Binary32>(task, a, b)) return true;
  return try_lanes<T, Binary64>(task, a, b);
}

LOWPREC_END
