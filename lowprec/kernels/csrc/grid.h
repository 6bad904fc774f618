// Rounding to the format's grid by one addition in the wanted direction.
//
// With c = 2^(P - p) times the power of two below |x| (at least 2^emin), |x| + c lies
// in the binade of c, where the carrier's quantum is the format's quantum q at x. So
// the processor's own rounding of that sum is the wanted one, and subtracting c is
// exact. Ties agree because c is an even multiple of q. The direction is set in the
// control register around the loop (environment.h).
//
// That holds for magnitudes up to the largest finite value. Lanes beyond it, and NaN,
// are hard: the block of vectors they are in is rounded by `exact`.
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

// What `exact` does with lanes beyond the largest finite value, and special ones.
enum Edges {
  kUniform,  // one magnitude replaces them, in every lane
  kRare      // a vector with such a lane takes the path that is always right
};

// What an underflow to zero leaves.
enum Zeros { kBothZeros, kOneZero, kNoNegatives };

// Numbers nearer to zero than 2^lowest.
enum Small {
  kGradual,     // their quantum is that of 2^emin
  kGap,         // their quantum is 2^emin
  kSmallIsHard  // hard, but for zero
};

// Out of line, for size.
template <class C, int64_t mode, int64_t variant = kA>
__attribute__((noinline)) VBits<C> round_rare(VBits<C> bits, const Plan<C>& plan,
                                              VBits<C> word = VBits<C>{}) {
  return round_bits<C, mode, variant>(bits, plan, word);
}

template <class C>
struct Grid {
  using Bits = typename C::Bits;
  using Float = typename C::Float;
  using L = Layout<C>;
  Plan<C> plan;
  Bits lowest, wide, limit, over, keep;
  Float raise, tie;

  // `least` is the smallest biased exponent at which the sums are exact.
  Grid(const Code& code, const Plan<C>& shared, int64_t least)
      : plan(shared),
        lowest(Bits(larger<int64_t>(shared.emin, least)) << L::fraction),
        wide(lowest + (Bits(C::precision - 1 - shared.drop) << L::fraction)),
        limit(largest_kept(code, shared)),
        over(shared.overflow[0] & (L::sign - 1)),
        keep(L::infinity + Bits(shared.overflow[0] == shared.infinite[0])),
        raise(bit_cast<Float>(Bits(C::bias + shared.drop) << L::fraction)),
        tie(bit_cast<Float>(
            (Bits(C::bias + shared.drop - C::precision) << L::fraction) -
            Bits(code.mode == kNearestZero))) {}

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

  // The power of two that has the quantum of x in common with x, as far as c = 2^drop
  // times it is concerned.
  template <Small small>
  LOWPREC_INLINE VBits<C> binade(VBits<C> bits) const {
    const VBits<C> own = bits & L::infinity, least = splat<VBits<C>>(lowest);
    if (small == kGap)
      return (VInt<C>)own < (VInt<C>)least ? splat<VBits<C>>(wide) : own;
    return larger_number<C>(own, least);
  }

  // x + c in the direction that is set, and what remains without c.
  LOWPREC_INLINE VFloat<C> plus(VFloat<C> x, VBits<C> binade) const {
    return multiply_add<C>((VFloat<C>)binade, splat<VFloat<C>>(raise), x);
  }
  LOWPREC_INLINE VFloat<C> minus(VFloat<C> x, VBits<C> binade) const {
    return multiply_add<C>((VFloat<C>)binade, splat<VFloat<C>>(-raise), x);
  }

  // Magnitude bits of the rounded number; the sign bit of the result means nothing.
  template <Core core, int64_t mode, Small small>
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
    VBits<C> power = binade<small>(bits);
    VFloat<C> size = (VFloat<C>)magnitude;
    if (core == kSignedSum) {
      power = with_sign<C>(power, bits);
      size = (VFloat<C>)bits;
    }
    if (core == kHalfSum)
      size = multiply_add<C>((VFloat<C>)power, splat<VFloat<C>>(tie), size);
    const VFloat<C> sum = plus(size, power);
    if (core == kOddSum) {
      const VInt<C> inexact = minus(sum, power) != size;
      const VBits<C> odd = (VBits<C>)sum | ((VBits<C>)inexact & Bits(1));
      return (VBits<C>)minus((VFloat<C>)odd, power);
    }
    return (VBits<C>)minus(sum, power);
  }

  // The result for a rounded magnitude that is not beyond the largest.
  template <Zeros zeros>
  LOWPREC_INLINE VBits<C> finished(VBits<C> near, VBits<C> bits) const {
    if (zeros == kBothZeros) return with_sign<C>(near, bits);
    near &= Bits(L::sign - 1);
    const VInt<C> vanished = near == Bits(0);
    if (zeros == kOneZero) return vanished ? near : with_sign<C>(near, bits);
    const VInt<C> negative = (VInt<C>)bits < typename C::Int(0);
    return negative & ~vanished ? splat<VBits<C>>(plan.below) : near;
  }

  // Whether one of the vectors has a lane that `rounded` does not serve.
  template <int count, Small small>
  LOWPREC_INLINE bool hard(const VBits<C>* vectors) const {
    const Bits magnitude = L::sign - 1;
    VBits<C> top = vectors[0] & magnitude, low = top - Bits(1);
#pragma GCC unroll 16
    for (int v = 1; v < count; ++v) {
      const VBits<C> size = vectors[v] & magnitude;
      top = larger_magnitude<C>(top, size);
      low = vector_min<VBits<C>>(low, size - Bits(1));  // zero becomes the largest
    }
    const bool beyond = any_greater<C>(top, splat<VBits<C>>(plan.largest));
    if (small != kSmallIsHard) return beyond;
    return beyond | any_greater<C>(splat<VBits<C>>(lowest - Bits(1)), low & magnitude);
  }

  template <Core core, int64_t mode, Zeros zeros, Small small>
  LOWPREC_INLINE VBits<C> fast(VBits<C> bits) const {
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    // The difference of equal numbers is +0 in these directions, whatever their sign.
    if (core == kSum && zeros == kOneZero)
      return rounded<kSignedSum, mode, small>(bits, magnitude);
    return finished<zeros>(rounded<core, mode, small>(bits, magnitude), bits);
  }

  template <Core core, int64_t mode, Edges edges, Zeros zeros, Small small>
  LOWPREC_INLINE VBits<C> exact(VBits<C> bits) const {
    if (edges == kRare) {
      if (hard<1, small>(&bits)) return round_rare<C, mode>(bits, plan);
      return fast<core, mode, zeros, small>(bits);
    }
    // Comparisons of signed integers: magnitudes have no sign, and AVX2 knows no other.
    const VBits<C> magnitude = bits & Bits(L::sign - 1);
    const VInt<C> size = (VInt<C>)magnitude;
    VBits<C> near = rounded<core, mode, small>(bits, magnitude);
    near = size > (VInt<C>)splat<VBits<C>>(limit) ? splat<VBits<C>>(over) : near;
    const VBits<C> result = finished<zeros>(near, bits);
    return size >= (VInt<C>)splat<VBits<C>>(keep) ? bits : result;
  }
};

// How a loop is instantiated.
template <class C, Core core, int64_t mode, Edges edges, Zeros zeros, Small small>
struct GridRounding {
  Grid<C> grid;
  template <int count>
  LOWPREC_INLINE bool hard(const VBits<C>* vectors) const {
    return grid.template hard<count, small>(vectors);
  }
  LOWPREC_INLINE VBits<C> fast(VBits<C> bits) const {
    return grid.template fast<core, mode, zeros, small>(bits);
  }
  LOWPREC_INLINE VBits<C> exact(VBits<C> bits) const {
    return grid.template exact<core, mode, edges, zeros, small>(bits);
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

// Ties are decided by half a quantum, which must be a normal number.
template <class C>
int64_t least_exponent(const Code& code, const Plan<C>& plan) {
  const bool ties = code.mode == kNearestAway || code.mode == kNearestZero;
  return ties ? C::precision + 1 - plan.drop : 1;
}

template <class C, Core core, int64_t mode, Edges edges, Zeros zeros, Small small>
void grid_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
               const Code& code, const Plan<C>& plan, bool stream) {
  using Rounding = GridRounding<C, core, mode, edges, zeros, small>;
  const Rounding rounding = {Grid<C>(code, plan, least_exponent(code, plan))};
  for_vectors<C>(x, out, count, rounding, stream);
}

template <class C>
struct GridChoice {
  Edges edges;
  Zeros zeros;
  Small small;
};

template <class C, Core core, int64_t mode, Edges edges, Zeros zeros>
RoundPart<C> grid_loop_at(Small small) {
  if (edges == kRare && small == kSmallIsHard)
    return grid_part<C, core, mode, kRare, zeros, kSmallIsHard>;
  return grid_part<C, core, mode, edges, zeros, kGradual>;
}

template <class C, Core core, int64_t mode, Edges edges>
RoundPart<C> grid_loop_with(GridChoice<C> choice) {
  if (choice.zeros == kOneZero)
    return grid_loop_at<C, core, mode, edges, kOneZero>(choice.small);
  if (choice.zeros == kNoNegatives)
    return grid_loop_at<C, core, mode, edges, kNoNegatives>(choice.small);
  if (choice.small == kGap) return grid_part<C, core, mode, edges, kBothZeros, kGap>;
  return grid_loop_at<C, core, mode, edges, kBothZeros>(choice.small);
}

template <class C, Core core, int64_t mode>
RoundPart<C> grid_loop(GridChoice<C> choice) {
  return choice.edges == kUniform ? grid_loop_with<C, core, mode, kUniform>(choice)
                                  : grid_loop_with<C, core, mode, kRare>(choice);
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

template <class C>
Zeros zeros_of(const Plan<C>& plan) {
  return plan.unsigned_format ? kNoNegatives : plan.keep_sign ? kBothZeros : kOneZero;
}

// Where numbers below 2^emin are too small for the sums, or in a gap at one zero, the
// few of them are hard.
template <class C>
GridChoice<C> grid_choice(const Plan<C>& plan, int64_t least) {
  const Zeros zeros = zeros_of(plan);
  if (plan.emin < least || (plan.gap && zeros != kBothZeros))
    return {kRare, zeros, kSmallIsHard};
  return {uniform_edges(plan) ? kUniform : kRare, zeros, plan.gap ? kGap : kGradual};
}

// The loop for this rounding, or no part.
template <class C>
RoundLoop<C> grid_rounding(const Code& code, const Plan<C>& plan) {
  using L = Layout<C>;
  const RoundLoop<C> none = {nullptr, kNearest};
  if (!plan.gap && plan.drop <= 0 && plan.emin + plan.drop <= 1 &&
      zeros_of(plan) == kBothZeros) {
    return {grid_part<C, kSame, kNearestEven, kRare, kBothZeros, kGradual>, kNearest};
  }
  const auto field = typename C::Int(plan.largest >> L::fraction);
  if (plan.drop < 1 || field != code.emax + C::bias ||
      code.emax + plan.drop > C::bias) {
    return none;
  }
  const GridChoice<C> choice = grid_choice(plan, least_exponent(code, plan));
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
