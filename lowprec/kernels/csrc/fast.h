// Cheaper loops for common roundings. Each says when it equals round_bits.
#pragma once
#include "floor.h"
#include "grid.h"
#include "stochastic.h"

LOWPREC_BEGIN

// Overflow and infinite inputs give one and the same magnitude, whatever the sign.
template <class C>
bool simple_overflow(const Plan<C>& plan) {
  const auto size = Layout<C>::sign - 1;
  return !plan.unsigned_format &&
         (plan.overflow[0] & size) == (plan.overflow[1] & size) &&
         (plan.overflow[0] & size) == (plan.infinite[0] & size);
}

// ---- Formats with the carrier's exponent range
// ---------------------------------------
//
// The number of dropped bits is then the same for every input, subnormals included, and
// rounding is an addition to the bits and a mask; carries are right by themselves.

template <class C>
bool same_range(const Plan<C>& plan) {
  // Two or more bits are kept: with one, the last kept bit is the implicit one.
  return plan.emin == 1 && plan.drop >= 1 && plan.drop <= C::precision - 2 &&
         !plan.unsigned_format && plan.keep_sign;
}

// Overflow is what a carry into the carrier's infinity gives.
template <class C>
bool natural_overflow(const Code& code, const Plan<C>& plan) {
  using L = Layout<C>;
  const auto unit = typename C::Bits(1) << (plan.drop < 1 ? 0 : plan.drop);
  return !plan.gap && code.saturation == kNone && code.flags & kInfinities &&
         code.emax == C::bias && plan.largest == L::infinity - unit;
}

// Whether a lane of some vectors is NaN: then so is a sum of which it is a term.
// Infinities of both signs may look so too.
template <class C, int count>
LOWPREC_INLINE bool any_nan(const VBits<C>* vectors) {
  VFloat<C> sum = (VFloat<C>)vectors[0];
#pragma GCC unroll 16
  for (int v = 1; v < count; ++v) sum += (VFloat<C>)vectors[v];
  return any_unequal<C>(sum, sum);
}

template <class C>
LOWPREC_INLINE VBits<C> keep_nans(VBits<C> bits, VBits<C> result) {
  using L = Layout<C>;
  const VInt<C> magnitude = (VInt<C>)(bits & typename C::Bits(L::sign - 1));
  return magnitude > (VInt<C>)splat<VBits<C>>(L::infinity) ? bits : result;
}

template <class C, int64_t mode>
struct Natural {
  using Bits = typename C::Bits;
  Bits drop;

  template <int count>
  LOWPREC_INLINE bool hard(const VBits<C>* vectors) const {
    return any_nan<C, count>(vectors);
  }
  LOWPREC_INLINE VBits<C> fast(VBits<C> bits) const {
    const Bits unit = Bits(1) << drop, half = unit >> 1;
    const VBits<C> negative = (VBits<C>)((VInt<C>)bits < typename C::Int(0));
    // The sign may stay in the sum: nothing carries into it but NaN, which is kept.
    VBits<C> sum = bits;
    if (mode == kNearestEven) sum += ((bits >> drop) & Bits(1)) + Bits(half - 1);
    if (mode == kNearestAway) sum += half;
    if (mode == kNearestZero) sum += Bits(half - 1);
    if (mode == kTowardPositive) sum += ~negative & Bits(unit - 1);
    if (mode == kTowardNegative) sum += negative & Bits(unit - 1);
    if (mode == kToOdd) sum |= (VBits<C>)((bits & Bits(unit - 1)) != Bits(0)) & unit;
    return sum & Bits(~(unit - 1));
  }
  LOWPREC_INLINE VBits<C> exact(VBits<C> bits) const {
    return keep_nans<C>(bits, fast(bits));
  }
};

template <class C, int64_t mode>
void natural_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                  const Code&, const Plan<C>& plan, bool stream) {
  const Natural<C, mode> rounding = {typename C::Bits(plan.drop)};
  for_vectors<C>(x, out, count, rounding, stream);
}

// Stochastic: the random bits, aligned with the dropped ones, are added. This is
// variant A; the others equal it when there are as many random bits as dropped ones.
// With equal probabilities all of the dropped bits are added, or nothing.
template <class C, int64_t mode>
struct NaturalWords {
  using Bits = typename C::Bits;
  Bits right, left, keep;

  explicit NaturalWords(const Plan<C>& plan)
      : right(Bits(32 - smaller(plan.drop, plan.random_bits))),
        left(Bits(plan.drop - smaller(plan.drop, plan.random_bits))),
        keep(~((Bits(1) << plan.drop) - 1)) {}

  template <int count>
  LOWPREC_INLINE bool hard(const VBits<C>* vectors) const {
    return any_nan<C, count>(vectors);
  }
  LOWPREC_INLINE VBits<C> fast(VBits<C> bits, VBits<C> word) const {
    VBits<C> random = (word >> right) << left;
    if (mode == kStochasticEqual) {
      const VInt<C> inexact = (bits & ~keep) != Bits(0);
      random = (VBits<C>)(inexact & (word >> Bits(31) != Bits(0))) & ~keep;
    }
    return (bits + random) & keep;
  }
  LOWPREC_INLINE VBits<C> exact(VBits<C> bits, VBits<C> word) const {
    return keep_nans<C>(bits, fast(bits, word));
  }
};

template <class C, int64_t mode>
void natural_words(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                   const Code&, const Plan<C>& plan, uint64_t seed, uint64_t first) {
  const NaturalWords<C, mode> rounding(plan);
  for_random_vectors<C>(x, out, count, seed, first, rounding);
}

template <class C>
RoundPart<C> natural_rounding(int64_t mode) {
  switch (mode) {
    case kNearestAway:
      return natural_part<C, kNearestAway>;
    case kNearestZero:
      return natural_part<C, kNearestZero>;
    case kTowardPositive:
      return natural_part<C, kTowardPositive>;
    case kTowardNegative:
      return natural_part<C, kTowardNegative>;
    case kTowardZero:
      return natural_part<C, kTowardZero>;
    case kToOdd:
      return natural_part<C, kToOdd>;
    default:
      return natural_part<C, kNearestEven>;
  }
}

// The same range with another overflow, or without subnormals.
template <class C>
RoundPart<C> masked_rounding(int64_t mode, bool gap) {
  // Below 2^emin there is only zero where there are no subnormals.
  const GridChoice<C> choice = {kRare, kBothZeros, gap ? kSmallIsHard : kGradual};
  switch (mode) {
    case kNearestAway:
      return grid_loop<C, kMask, kNearestAway>(choice);
    case kNearestZero:
      return grid_loop<C, kMask, kNearestZero>(choice);
    case kTowardPositive:
      return grid_loop<C, kMask, kTowardPositive>(choice);
    case kTowardNegative:
      return grid_loop<C, kMask, kTowardNegative>(choice);
    case kTowardZero:
      return grid_loop<C, kMask, kTowardZero>(choice);
    case kToOdd:
      return grid_loop<C, kMask, kToOdd>(choice);
    default:
      return grid_loop<C, kMask, kNearestEven>(choice);
  }
}

template <class C, int64_t mode>
void floor_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                const Code& code, const Plan<C>& plan, bool) {
  struct Rounding {
    Floor<C> floor;
    LOWPREC_INLINE VBits<C> exact(VBits<C> bits) const {
      return floor.template round<mode>(bits);
    }
  };
  exact_vectors<C>(x, out, count, Rounding{Floor<C>(code, plan)});
}

// Where the direction cannot be set, the remainder decides.
template <class C>
RoundPart<C> floor_rounding(int64_t mode) {
  switch (mode) {
    case kNearestAway:
      return floor_part<C, kNearestAway>;
    case kNearestZero:
      return floor_part<C, kNearestZero>;
    case kTowardPositive:
      return floor_part<C, kTowardPositive>;
    case kTowardNegative:
      return floor_part<C, kTowardNegative>;
    case kTowardZero:
      return floor_part<C, kTowardZero>;
    case kToOdd:
      return floor_part<C, kToOdd>;
    default:
      return floor_part<C, kNearestEven>;
  }
}

// The cheap loop for this rounding, or no part.
template <class C>
RoundLoop<C> fast_rounding(const Code& code, const Plan<C>& plan) {
  if (same_range(plan)) {
    if (natural_overflow(code, plan)) return {natural_rounding<C>(code.mode), kNearest};
    return {masked_rounding<C>(code.mode, plan.gap), kNearest};
  }
  const RoundLoop<C> loop = grid_rounding<C>(code, plan);
  if constexpr (!kDirections) {
    if (loop.part == nullptr && Floor<C>::applies(code, plan))
      return {floor_rounding<C>(code.mode), kNearest};
  }
  return loop;
}

template <class C, int64_t mode, int64_t variant>
void floor_words(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                 const Code& code, const Plan<C>& plan, uint64_t seed, uint64_t first) {
  struct Rounding : AlwaysExact<C> {
    Floor<C> floor;
    explicit Rounding(const Floor<C>& given) : floor(given) {}
    LOWPREC_INLINE VBits<C> exact(VBits<C> bits, VBits<C> word) const {
      return floor.template round<mode, variant>(bits, word);
    }
  };
  for_random_vectors<C>(x, out, count, seed, first, Rounding(Floor<C>(code, plan)));
}

template <class C>
WordsLoop<C> fast_stochastic(const Code& code, const Plan<C>& plan) {
  const bool additive = code.variant == kA || code.random_bits >= plan.drop;
  if (same_range(plan) && natural_overflow(code, plan)) {
    if (code.mode == kStochasticEqual)
      return {natural_words<C, kStochasticEqual>, kNearest};
    if (additive) return {natural_words<C, kStochastic>, kNearest};
  }
  const WordsLoop<C> loop = grid_stochastic(code, plan);
  if (loop.part != nullptr || !Floor<C>::applies(code, plan)) return loop;
  if (code.mode == kStochasticEqual)
    return {floor_words<C, kStochasticEqual, kA>, kNearest};
  if (code.variant == kA) return {floor_words<C, kStochastic, kA>, kNearest};
  return loop;
}

LOWPREC_END
