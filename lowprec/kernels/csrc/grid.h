// Rounding to the format's grid by one addition in the wanted direction.
//
// With c = 2^(P - p) times the power of two below |x| (at least 2^emin), |x| + c lies
// in the binade of c, where the carrier's quantum is the format's quantum q at x. So
// the processor's own rounding of that sum is the wanted one, and subtracting c is
// exact. Ties agree because c is an even multiple of q. The direction is set in the
// control register around the loop (environment.h).
//
// Where c would overflow, or a result may, the lane is beyond the largest finite value
// and is replaced, either in place or by the path that is always right.
#pragma once
#include "environment.h"
#include "loops.h"
#include "rounding.h"
#include "simd.h"

LOWPREC_BEGIN

// How a magnitude is brought to the grid.
enum Core {
  kSum,        // one addition in the direction of the magnitude
  kSignedSum,  // one addition in the direction of the signed number
  kHalfSum,    // ties away or to zero: half a quantum is added first, both truncating
  kOddSum,     // truncated; the last bit is set where that was inexact
  kSame,       // every number of the carrier up to the largest is a value
  kMask        // the carrier's own exponent range: integer addition and a mask
};

// How lanes beyond the largest finite value, and special ones, are treated.
enum Edges {
  kUniform,  // one magnitude replaces them, in every lane
  kRare      // a vector with such a lane takes the path that is always right
};

// What an underflow to zero leaves.
enum Zeros { kBothZeros, kOneZero, kNoNegatives };

template <class C>
struct Grid {
  using Bits = typename C::Bits;
  using L = Layout<C>;
  Plan<C> plan;
  Bits lowest, raise, tie, limit, over, keep;

  Grid(const Code& code, const Plan<C>& shared)
      : plan(shared),
        lowest(Bits(shared.emin) << L::fraction),
        raise(Bits(shared.drop) << L::fraction),
        tie((Bits(C::precision) << L::fraction) + Bits(code.mode == kNearestZero)),
        limit(largest_kept(code, shared)),
        over(shared.overflow[0] & (L::sign - 1)),
        keep(L::infinity + Bits(shared.overflow[0] == shared.infinite[0])) {}

  // The largest magnitude that does not become `over`, of the nearest modes if that is
  // not the largest finite value.
  static Bits largest_kept(const Code& code, const Plan<C>& plan) {
    const bool directed = code.mode == kTowardPositive || code.mode == kTowardNegative;
    if (plan.overflow[0] == plan.largest || directed || plan.drop < 1)
      return plan.largest;
    const Bits half = (Bits(1) << plan.drop) >> 1;
    const Bits odd = plan.drop == L::fraction ? 1 : (plan.largest >> plan.drop) & 1;
    if (code.mode == kNearestZero) return plan.largest + half;
    if (code.mode == kNearestAway) return plan.largest + half - 1;
    return plan.largest + half - odd;
  }

  template <bool gap>
  LOWPREC_INLINE VBits<C> magic(VBits<C> bits) const {
    const VBits<C> binade = bits & L::infinity;
    if (gap) {  // below 2^emin the quantum is 2^emin itself
      const VBits<C> wide =
          splat<VBits<C>>(lowest + (Bits(C::precision - 1) << L::fraction));
      return (VInt<C>)binade < (VInt<C>)splat<VBits<C>>(lowest) ? wide : binade + raise;
    }
    return larger_number<C>(binade, splat<VBits<C>>(lowest)) + raise;
  }

  // Magnitude bits of the rounded number; the sign bit of the result means nothing.
  template <Core core, int64_t mode, bool gap>
  LOWPREC_INLINE VBits<C> rounded(VBits<C> bits, VBits<C> magnitude) const {
    if (core == kSame) return magnitude;
    if (core == kMask) {
      const Bits drop = Bits(plan.drop), unit = Bits(1) << drop, half = unit >> 1;
      const VBits<C> negative = (VBits<C>)((VInt<C>)bits < typename C::Int(0));
      VBits<C> sum = magnitude;
      if (mode == kNearestEven) sum += ((bits >> drop) & Bits(1)) + Bits(half - 1);
      if (mode == kNearestAway) sum += half;
      if (mode == kNearestZero) sum += Bits(half - 1);
      if (mode == kTowardPositive) sum += ~negative & Bits(unit - 1);
      if (mode == kTowardNegative) sum += negative & Bits(unit - 1);
      if (mode == kToOdd) sum |= (VBits<C>)((bits & Bits(unit - 1)) != Bits(0)) & unit;
      return sum & Bits(~(unit - 1));
    }
    VBits<C> c = magic<gap>(bits);
    VFloat<C> size = (VFloat<C>)magnitude;
    if (core == kSignedSum) {
      c = with_sign<C>(c, bits);
      size = (VFloat<C>)bits;
    }
    if (core == kHalfSum) size += (VFloat<C>)(c - tie);
    const VFloat<C> sum = size + (VFloat<C>)c;
    if (core == kOddSum) {
      const VInt<C> inexact = sum - (VFloat<C>)c != size;
      return (VBits<C>)((VFloat<C>)((VBits<C>)sum | ((VBits<C>)inexact & Bits(1))) -
                        (VFloat<C>)c);
    }
    return (VBits<C>)(sum - (VFloat<C>)c);
  }

  template <Core core, int64_t mode, Edges edges, Zeros zeros, bool gap>
  LOWPREC_INLINE VBits<C> round(VBits<C> bits) const {
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    VBits<C> near = rounded<core, mode, gap>(bits, magnitude);
    if (edges == kRare) {
      bool hard = any_greater<C>(magnitude, splat<VBits<C>>(plan.largest));
      if (core == kMask && gap) {  // below 2^emin there is only zero
        const VInt<C> less = (VInt<C>)(magnitude - Bits(1));
        const VInt<C> end = (VInt<C>)splat<VBits<C>>(lowest - Bits(1));
        hard |= any<VInt<C>>(~(less < VInt<C>{}) & (less < end));
      }
      if (__builtin_expect(hard, false)) return round_bits<C, mode>(bits, plan);
      const VBits<C> result = with_sign<C>(near, bits);
      if (zeros == kBothZeros) return result;
      return (near & Bits(L::sign - 1)) == Bits(0) ? VBits<C>{} : result;
    }
    // Comparisons of signed integers: magnitudes have no sign, and AVX2 knows no other.
    const VInt<C> size = (VInt<C>)magnitude;
    near = size > (VInt<C>)splat<VBits<C>>(limit) ? splat<VBits<C>>(over) : near;
    VBits<C> result = with_sign<C>(near, bits);
    if (zeros != kBothZeros) {
      near &= Bits(L::sign - 1);
      const VInt<C> negative = (VInt<C>)bits < typename C::Int(0);
      const VInt<C> vanished = near == Bits(0);
      if (zeros == kOneZero) result = vanished ? near : result;
      if (zeros == kNoNegatives)
        result = negative & ~vanished ? splat<VBits<C>>(plan.below) : near;
    }
    return size >= (VInt<C>)splat<VBits<C>>(keep) ? bits : result;
  }
};

template <class C>
using RoundPart = void (*)(const typename C::Bits*, typename C::Bits*, int64_t,
                           const Code&, const Plan<C>&, bool);

// A loop and the direction in which it must run.
template <class C>
struct RoundLoop {
  RoundPart<C> part;
  Direction direction;
};

template <class C, Core core, int64_t mode, Edges edges, Zeros zeros, bool gap>
void grid_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
               const Code& code, const Plan<C>& plan, bool stream) {
  const Grid<C> grid(code, plan);
  for_vectors<C>(
      x, out, count,
      [grid](VBits<C> bits) LOWPREC_LAMBDA {
        return grid.template round<core, mode, edges, zeros, gap>(bits);
      },
      stream);
}

template <class C>
struct GridChoice {
  Edges edges;
  Zeros zeros;
  bool gap;
};

template <class C, Core core, int64_t mode>
RoundPart<C> grid_loop(GridChoice<C> choice) {
  if (choice.edges == kRare) {
    if (choice.zeros == kOneZero)
      return grid_part<C, core, mode, kRare, kOneZero, false>;
    return choice.gap ? grid_part<C, core, mode, kRare, kBothZeros, true>
                      : grid_part<C, core, mode, kRare, kBothZeros, false>;
  }
  if (choice.zeros == kOneZero)
    return grid_part<C, core, mode, kUniform, kOneZero, false>;
  if (choice.zeros == kNoNegatives)
    return grid_part<C, core, mode, kUniform, kNoNegatives, false>;
  return choice.gap ? grid_part<C, core, mode, kUniform, kBothZeros, true>
                    : grid_part<C, core, mode, kUniform, kBothZeros, false>;
}

// Every lane beyond `limit` becomes `over`, and NaN, or NaN and infinity, are kept.
template <class C>
bool uniform_edges(const Plan<C>& plan) {
  const auto size = Layout<C>::sign - 1;
  if (plan.unsigned_format) {
    return plan.overflow[0] == plan.infinite[0] && plan.overflow[1] == plan.below &&
           plan.infinite[1] == plan.below;
  }
  return (plan.overflow[0] & size) == (plan.overflow[1] & size) &&
         (plan.overflow[0] == plan.infinite[0] ||
          plan.infinite[0] == Layout<C>::infinity);
}

// The loop for formats whose quanta are normal numbers of the carrier, or no part.
template <class C>
RoundLoop<C> grid_rounding(const Code& code, const Plan<C>& plan) {
  using L = Layout<C>;
  const RoundLoop<C> none = {nullptr, kNearest};
  const GridChoice<C> choice = {uniform_edges(plan) ? kUniform : kRare,
                                plan.unsigned_format ? kNoNegatives
                                : plan.keep_sign     ? kBothZeros
                                                     : kOneZero,
                                plan.gap};
  const bool special = choice.zeros != kBothZeros;
  const bool negatives = !plan.unsigned_format;
  if (special && (choice.gap || (choice.edges == kRare && !negatives))) return none;
  if (!plan.gap && plan.drop <= 0 && plan.emin + plan.drop <= 1 && !special) {
    return {grid_loop<C, kSame, kNearestEven>({kRare, kBothZeros, false}), kNearest};
  }
  const auto field = typename C::Int(plan.largest >> L::fraction);
  const int ties = code.mode == kNearestAway || code.mode == kNearestZero;
  if (plan.deep || plan.drop < 1 || field != code.emax + C::bias ||
      code.emax + plan.drop > C::bias ||
      (ties && plan.emin + plan.drop <= C::precision)) {
    return none;
  }
  if (code.mode == kNearestEven)
    return {grid_loop<C, kSum, kNearestEven>(choice), kNearest};
  if (!kDirections) return none;
  switch (code.mode) {
    case kNearestAway:
      return {grid_loop<C, kHalfSum, kNearestAway>(choice), kInward};
    case kNearestZero:
      return {grid_loop<C, kHalfSum, kNearestZero>(choice), kInward};
    case kTowardPositive:
      return {grid_loop<C, kSignedSum, kTowardPositive>(choice), kUp};
    case kTowardNegative:
      return {grid_loop<C, kSignedSum, kTowardNegative>(choice), kDown};
    case kTowardZero:
      return {grid_loop<C, kSum, kTowardZero>(choice), kInward};
    case kToOdd:
      return {grid_loop<C, kOddSum, kToOdd>(choice), kInward};
    default:
      return none;
  }
}

LOWPREC_END
