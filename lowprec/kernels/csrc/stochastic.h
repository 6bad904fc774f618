// Stochastic rounding to the format's grid, by the addition of grid.h.
//
// The sum is truncated, so what is left of |x| is the discarded fraction, exactly. It
// is scaled to an integer and compared with the random word.
#pragma once
#include "grid.h"

LOWPREC_BEGIN

template <class C>
using WordsPart = void (*)(const typename C::Bits*, typename C::Bits*, int64_t,
                           const Code&, const Plan<C>&, uint64_t, uint64_t);

template <class C>
struct WordsLoop {
  WordsPart<C> part;
  Direction direction;
};

struct StochasticGrid {
  using C = Binary32;
  using L = Layout<C>;
  Grid<C> grid;
  uint32_t reciprocal, top, spare;

  StochasticGrid(const Code& code, const Plan<C>& plan)
      : grid(code, plan),
        // The exponents of a power of two and of its reciprocal add up to twice the
        // bias. A quantum is 2^23 times less than c; fractions count in 2^-32, or in
        // 2^-random_bits where they are rounded.
        reciprocal(
            uint32_t(2 * C::bias + 23 + (code.variant == kA ? 32 : code.random_bits))
            << L::fraction),
        top(~uint32_t(0) << (32 - code.random_bits)),
        spare(uint32_t(32 - code.random_bits)) {}

  template <int64_t variant>
  LOWPREC_INLINE VInt<C> up(VFloat<C> rest, VBits<C> c, VBits<C> word) const {
    const VFloat<C> scaled = rest * (VFloat<C>)(reciprocal - c);
    // Up iff fraction + random >= 2^32, both with `spare` zeros at the end: those of
    // the word do not matter then.
    if (variant == kA) {
      const VBits<C> least = not_both(integer_part(scaled), splat<VBits<C>>(top));
      return unsigned_greater(word, least);
    }
    VBits<C> fraction;
    if (variant == kB) fraction = integer_part(scaled + 0.5f);  // truncated: exact
#if defined(__AVX512F__)
    if (variant == kC) {
      fraction = (VBits<C>)_mm512_cvt_roundps_epu32(
          (__m512)scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
#endif
    const VBits<C> mask = splat<VBits<C>>(grid.plan.random_mask);
    return unsigned_greater(fraction, mask) |
           unsigned_greater(word >> spare, mask - fraction);
  }

  template <int64_t mode, int64_t variant, bool gap>
  LOWPREC_INLINE VBits<C> round(VBits<C> bits, VBits<C> word) const {
    const VBits<C> magnitude = bits & uint32_t(L::sign - 1);
    const VBits<C> largest = splat<VBits<C>>(grid.plan.largest);
    if (__builtin_expect(any_greater<C>(magnitude, largest), false))
      return round_bits<C, mode, variant>(bits, grid.plan, word);
    const VBits<C> c = grid.template magic<gap>(bits);
    const VFloat<C> size = (VFloat<C>)magnitude, sum = size + (VFloat<C>)c;
    const VFloat<C> below = sum - (VFloat<C>)c;
    const VInt<C> above = mode == kStochastic ? up<variant>(size - below, c, word)
                                              : (below != size) & ((VInt<C>)word < 0);
    // One more in the last place of the sum is one more quantum.
    const VInt<C> next = above ? (VInt<C>)sum + 1 : (VInt<C>)sum;
    return with_sign<C>((VBits<C>)((VFloat<C>)next - (VFloat<C>)c), bits);
  }
};

template <int64_t mode, int64_t variant, bool gap>
void stochastic_grid_part(const uint32_t* x, uint32_t* out, int64_t count,
                          const Code& code, const Plan<Binary32>& plan, uint64_t seed,
                          uint64_t first) {
  using C = Binary32;
  const StochasticGrid grid(code, plan);
  const auto round = [grid](VBits<C> bits, const uint32_t* words) LOWPREC_LAMBDA {
    return grid.round<mode, variant, gap>(bits, load_words<C>(words));
  };
  for_random_vectors<C>(x, out, count, seed, first, round);
}

template <int64_t mode, int64_t variant>
WordsLoop<Binary32> stochastic_loop(bool gap) {
  return {gap ? stochastic_grid_part<mode, variant, true>
              : stochastic_grid_part<mode, variant, false>,
          kInward};
}

inline WordsLoop<Binary32> grid_stochastic(const Code& code,
                                           const Plan<Binary32>& plan) {
  using C = Binary32;
  const WordsLoop<C> none = {nullptr, kNearest};
  if (!kDirections || plan.deep || plan.drop < 1 || plan.unsigned_format ||
      !plan.keep_sign || code.emax + plan.drop > C::bias) {
    return none;
  }
  if (code.mode == kStochasticEqual)
    return stochastic_loop<kStochasticEqual, kA>(plan.gap);
  if (plan.emin + plan.drop < 23 + 32) return none;  // the reciprocal is a number
  if (code.variant == kA) return stochastic_loop<kStochastic, kA>(plan.gap);
  if (code.variant == kB) return stochastic_loop<kStochastic, kB>(plan.gap);
#if defined(__AVX512F__)
  return stochastic_loop<kStochastic, kC>(plan.gap);
#else
  return none;
#endif
}

inline WordsLoop<Binary64> grid_stochastic(const Code&, const Plan<Binary64>&) {
  return {nullptr, kNearest};
}

LOWPREC_END
