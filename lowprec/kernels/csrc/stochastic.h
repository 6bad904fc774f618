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
  float quantum;  // of a binade of one

  // Fractions count in 2^-32, or in 2^-random_bits where they are rounded.
  static int64_t unit(const Code& code) {
    return code.variant == kA ? 32 : code.random_bits;
  }

  // What quanta are multiplied by is a number only if they are not too small.
  static int64_t least(const Code& code, const Plan<C>& plan) {
    return code.mode == kStochasticEqual ? 1 : larger<int64_t>(1, 23 + 32 - plan.drop);
  }

  StochasticGrid(const Code& code, const Plan<C>& plan)
      : grid(code, plan, least(code, plan)),
        // The exponents of a power of two and of its reciprocal add up to twice the
        // bias. A quantum is 2^(23 - drop) times less than the binade.
        reciprocal(uint32_t(2 * C::bias + 23 - plan.drop + unit(code)) << L::fraction),
        top(~uint32_t(0) << (32 - code.random_bits)),
        spare(uint32_t(32 - code.random_bits)),
        quantum(bit_cast<float>(uint32_t(C::bias + plan.drop - 23) << L::fraction)) {}

  template <int64_t variant>
  LOWPREC_INLINE VInt<C> up(VFloat<C> rest, VBits<C> binade, VBits<C> word) const {
    const VFloat<C> scaled = rest * (VFloat<C>)(reciprocal - binade);
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

  template <int64_t mode, int64_t variant, Zeros zeros, Small small>
  LOWPREC_INLINE VBits<C> fast(VBits<C> bits, VBits<C> word) const {
    const VFloat<C> size = (VFloat<C>)(bits & uint32_t(L::sign - 1));
    const VBits<C> binade = grid.template binade<small>(bits);
    const VFloat<C> sum = grid.plus(size, binade), below = grid.minus(sum, binade);
    const VInt<C> above = mode == kStochastic ? up<variant>(size - below, binade, word)
                                              : (below != size) & ((VInt<C>)word < 0);
    const VFloat<C> next =
        multiply_add<C>((VFloat<C>)binade, splat<VFloat<C>>(quantum), below);
    const VFloat<C> near = above ? next : below;
    return grid.template finished<zeros>((VBits<C>)near, bits);
  }
};

template <int64_t mode, int64_t variant, Zeros zeros, Small small>
struct StochasticGridRounding {
  using C = Binary32;
  StochasticGrid stochastic;
  template <int count>
  LOWPREC_INLINE bool hard(const VBits<C>* vectors) const {
    return stochastic.grid.hard<count, small>(vectors);
  }
  LOWPREC_INLINE VBits<C> fast(VBits<C> bits, VBits<C> word) const {
    return stochastic.fast<mode, variant, zeros, small>(bits, word);
  }
  LOWPREC_INLINE VBits<C> exact(VBits<C> bits, VBits<C> word) const {
    if (stochastic.grid.hard<1, small>(&bits))
      return round_rare<C, mode, variant>(bits, stochastic.grid.plan, word);
    return fast(bits, word);
  }
};

template <int64_t mode, int64_t variant, Zeros zeros, Small small>
void stochastic_grid_part(const uint32_t* x, uint32_t* out, int64_t count,
                          const Code& code, const Plan<Binary32>& plan, uint64_t seed,
                          uint64_t first) {
  using Rounding = StochasticGridRounding<mode, variant, zeros, small>;
  const Rounding rounding = {StochasticGrid(code, plan)};
  for_random_vectors<Binary32>(x, out, count, seed, first, rounding);
}

template <int64_t mode, int64_t variant, Zeros zeros>
WordsPart<Binary32> stochastic_part(Small small) {
  if (small == kSmallIsHard)
    return stochastic_grid_part<mode, variant, zeros, kSmallIsHard>;
  if (small == kGap && zeros == kBothZeros)
    return stochastic_grid_part<mode, variant, kBothZeros, kGap>;
  return stochastic_grid_part<mode, variant, zeros, kGradual>;
}

template <int64_t mode, int64_t variant>
WordsLoop<Binary32> stochastic_loop(GridChoice<Binary32> choice) {
  if (choice.zeros == kOneZero)
    return {stochastic_part<mode, variant, kOneZero>(choice.small), kInward};
  if (choice.zeros == kNoNegatives)
    return {stochastic_part<mode, variant, kNoNegatives>(choice.small), kInward};
  return {stochastic_part<mode, variant, kBothZeros>(choice.small), kInward};
}

inline WordsLoop<Binary32> grid_stochastic(const Code& code,
                                           const Plan<Binary32>& plan) {
  using C = Binary32;
  const WordsLoop<C> none = {nullptr, kNearest};
  if (!kDirections || plan.drop < 1 || code.emax + plan.drop > C::bias) return none;
  const GridChoice<C> choice = grid_choice(plan, StochasticGrid::least(code, plan));
  if (code.mode == kStochasticEqual)
    return stochastic_loop<kStochasticEqual, kA>(choice);
  if (code.variant == kA) return stochastic_loop<kStochastic, kA>(choice);
  if (code.variant == kB) return stochastic_loop<kStochastic, kB>(choice);
#if defined(__AVX512F__)
  return stochastic_loop<kStochastic, kC>(choice);
#else
  return none;
#endif
}

inline WordsLoop<Binary64> grid_stochastic(const Code&, const Plan<Binary64>&) {
  return {nullptr, kNearest};
}

LOWPREC_END
