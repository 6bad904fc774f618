// Which cheap products equal the general ones, decided from facts about the operands.
#pragma once
#include "fast_gemm.h"

LOWPREC_BEGIN

// The least e with x < 2^e, for x > 0.
inline int exponent_above(double x) { return __builtin_ilogb(x) + 1; }

// Nearest-even in signed formats with subnormals and signed zeros, where overflow and
// infinities meet the same fate.
template <class C>
bool plain_format(const Code& code, Plan<C>* plan) {
  return make_plan<C>(code, plan) == kOk && code.mode == kNearestEven && !plan->gap &&
         !plan->deep && plan->drop >= 1 && plan->keep_sign && simple_overflow(*plan) &&
         code.emin + plan->drop + 1 <= C::bias;
}

template <class C>
bool finite_overflow(const Plan<C>& plan) {
  return (plan.overflow[0] & Layout<C>::infinity) != Layout<C>::infinity;
}

// Proves that lanes of type C compute the product exactly as defined, or says no.
//
// 1. Products are exact and normal in C.
// 2. |total| <= 2^top always. With |term| <= 2^t, t not below the quantum, and
//    top = t + p, adding a term to 2^top changes it by at most half a quantum, and
//    nearest-even returns to 2^top, which is even (if p = 1, top is one larger and the
//    change less than half a quantum). So the addition of c in RegisterRounding stays
//    in range.
// 3. A sum rounded to C first, to nearest, and then to p bits is rounded correctly if
//    total and term have at most p bits and C at least 2p + 1 (Figueroa), or if it is
//    exact: all of its bits lie between those of 2^top and the lowest one of terms and
//    of what replaces overflow; rounding never adds lower bits. Otherwise it is rounded
//    to odd first, which needs C to have p + 2 bits.
// 4. Without overflow (2^top at most 2^emax) and with all terms multiples of the
//    accumulator's quantum, its range can be forgotten: sums below 2^emin are exact.
template <class C>
bool proved(const Matmul& task, const Facts& a, const Facts& b, Proof* proof,
            Plan<C>* sum, Plan<C>* product) {
  const Code& code = task.accumulate;
  const Code& product_code = task.exact_products ? code : task.product;
  proof->rounded = !task.exact_products;
  if (!plain_format<C>(code, sum) || !plain_format<C>(product_code, product))
    return false;

  const bool zero = a.largest == 0 || b.largest == 0;
  const int p = int(code.precision), quantum = int(code.emin) - p + 1;
  const int bits = a.significant_bits + b.significant_bits;
  // All terms are multiples of 2^lowest and at most 2^above.
  int lowest = zero ? 0 : a.lowest_bit() + b.lowest_bit();
  int above = zero ? 0 : exponent_above(a.largest) + exponent_above(b.largest);
  if (bits > C::precision || above >= C::bias || lowest < 2 - C::bias) return false;

  // Infinite products come from infinite operands or from rounding. A finite number in
  // place of infinity may lie far above 2^top, so it must not enter a sum.
  bool in_range = a.finite && b.finite;
  if (!in_range && finite_overflow(*product)) return false;
  if (proof->rounded) in_range = in_range && above <= product_code.emax;
  if (!in_range && !finite_overflow(*product) && finite_overflow(*sum)) return false;

  int term_bits = bits;
  if (proof->rounded) {
    const int product_bits = int(product_code.precision);
    const int product_quantum = int(product_code.emin) - product_bits + 1;
    if (above + C::precision - product_bits + 1 > C::bias) return false;
    term_bits = product_bits;
    lowest = larger(lowest, product_quantum);
    above = larger(above, product_quantum);
    lowest = smaller(lowest, int(product_code.emax) - product_bits + 1);
  }
  int top = larger(above, quantum) + p + (p == 1);
  if (task.order == kBlocked) top += p + (p == 1);  // its terms are the block sums
  if (top + C::precision - p + 2 > C::bias) return false;

  in_range = in_range && top <= code.emax && lowest >= quantum;
  proof->guarded = !in_range;
  if (proof->guarded) lowest = smaller(lowest, int(code.emax) - p + 1);
  const bool innocuous = term_bits <= p && 2 * p + 1 <= C::precision;
  const bool exact_sums = top + 1 - lowest <= C::precision;
  proof->odd = !innocuous && !exact_sums;
  return !proof->odd || p + 2 <= C::precision;
}

template <class T, class C>
bool try_lanes(const Matmul& task, const Facts& a, const Facts& b) {
  Proof proof;
  Plan<C> sum, product;
  if (!proved<C>(task, a, b, &proof, &sum, &product)) return false;
  const Kernel<C> kernel = {RegisterRounding<C>(sum), RegisterRounding<C>(product)};
  if (task.columns >= 8 || task.columns >= task.rows) {
    run_fast<T, C>(task, kernel, proof, task.columns, 1);
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
  run_fast<T, C>(turned, kernel, proof, 1, task.columns);
  return true;
}

// Whether the product was computed.
template <class T>
bool fast_matmul(const Matmul& task, const Facts& a, const Facts& b) {
  if (task.order == kPairwise || task.order == kKahan || task.promoted) return false;
  if (sizeof(T) == 4 && try_lanes<T, Binary32>(task, a, b)) return true;
  return try_lanes<T, Binary64>(task, a, b);
}

LOWPREC_END
