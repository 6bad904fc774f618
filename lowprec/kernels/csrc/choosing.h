// Rounding to one of finitely many levels at random.
#pragma once
#include "levels.h"
#include "threshold.h"

LOWPREC_BEGIN

// As many 64-bit numbers as a carrier's vector has lanes.
template <class C>
struct WideVector {
  typedef double Float __attribute__((vector_size(8 * C::lanes)));
  typedef int64_t Int __attribute__((vector_size(8 * C::lanes)));
};

// The levels around x, and the exact decision between them: the fraction is counted
// from the one that is nearer to zero.
template <class C>
struct Choosing : AlwaysExact<C> {
  using Bits = typename C::Bits;
  using Float = typename C::Float;
  using Int = typename C::Int;
  using Wide = typename WideVector<C>::Float;
  using WideInt = typename WideVector<C>::Int;
  LevelRow<C> row;
  Threshold threshold;
  bool equal;  // both sides are equally probable

  Choosing(const Choice& choice, const Code& code)
      : row((const Float*)choice.levels, (const Float*)choice.levels, choice.width, 0),
        threshold(code),
        equal(code.mode == kStochasticEqual) {}

  LOWPREC_INLINE VBits<C> exact(VBits<C> bits, VBits<C> word) const {
    const VFloat<C> given = (VFloat<C>)bits;
    const VFloat<C> first = splat<VFloat<C>>(row.first());
    const VFloat<C> last = splat<VFloat<C>>(row.last());
    const VFloat<C> x = within<C>(given, first, last);
    VFloat<C> low, high;
    row.cell(x, &low, &high);
    const VInt<C> below = high <= Float(0);
    VInt<C> away = (VInt<C>)((VInt<C>)(word << Bits(C::width - 32)) < Int(0));
    if (!equal) away = reaches(x, low, high, below, word);
    const VInt<C> up = ((away ^ below) & (x != low)) | (x == high);
    const VFloat<C> result = up ? high : low;
    return (VBits<C>)(given == given ? result : given);
  }

  // Whether x goes to the level farther from zero.
  LOWPREC_INLINE VInt<C> reaches(VFloat<C> x, VFloat<C> low, VFloat<C> high,
                                 VInt<C> below, VBits<C> word) const {
    const VFloat<C> start = below ? high : low;
    const Wide from = __builtin_convertvector(start, Wide);
    const Wide distance = __builtin_convertvector(x, Wide) - from;
    const Wide size = distance < 0.0 ? -distance : distance;
    const Wide gap = __builtin_convertvector(high, Wide) -
                     __builtin_convertvector(low, Wide);
    const WideInt random = __builtin_convertvector(
        word >> Bits(32 - threshold.random_bits), WideInt);
    const WideInt missing = (int64_t(1) << threshold.random_bits) - random;
    const int64_t half = threshold.variant != kA;  // of a unit less, in halves
    const WideInt count = (missing << half) - half;
    const Wide share = __builtin_convertvector(count, Wide) * threshold.unit();
    const Wide reached = gap * share;
    WideInt over = size > reached;
    // Both have an error of at most half a unit in the last place.
    const Wide room = size - reached;
    const WideInt close = (room < 0.0 ? -room : room) <= reached * 0x1p-50;
    bool some = false;
    for (int lane = 0; lane < C::lanes; ++lane) some |= close[lane] != 0;
    if (__builtin_expect(some, false))
      over = exactly(x, from, gap, share, missing, close, over);
    return __builtin_convertvector(over, VInt<C>);
  }

  __attribute__((noinline)) WideInt exactly(VFloat<C> x, Wide from, Wide gap,
                                            Wide share, WideInt missing, WideInt close,
                                            WideInt over) const {
    for (int lane = 0; lane < C::lanes; ++lane) {
      if (!close[lane]) continue;
      const double a = double(x[lane]), b = -from[lane];
      const double sum = a + b, shadow = sum - a;
      const double error = (a - (sum - shadow)) + (b - shadow);
      const double sign = sum < 0 ? -1.0 : 1.0;
      const double size = sum * sign, rest = error * sign;
      const double reached = gap[lane] * share[lane];
      const double lost = __builtin_fma(gap[lane], share[lane], -reached);
      const bool strict = threshold.variant == kC && missing[lane] % 2 != 0;
      const bool same = size == reached;
      const bool more = same && (rest > lost || (rest == lost && !strict));
      over[lane] = size > reached || more ? -1 : 0;
    }
    return over;
  }
};

template <class C>
Status choose_levels(const Choice& choice) {
  using Bits = typename C::Bits;
  const Code code = {1, 0, 0, 1, 0, choice.mode, kNone, choice.random_bits,
                     choice.variant};
  if (!valid(code) || !stochastic(code) || choice.width < 2) return kBadArgument;
  const Choosing<C> choosing(choice, code);
  const Bits* x = (const Bits*)choice.x;
  Bits* out = (Bits*)choice.out;
  for_parts(choice.count, choice.threads, kNearest, [&](int64_t i, int64_t count) {
    for_random_vectors<C>(x + i, out + i, count, choice.seed,
                          choice.offset + uint64_t(i), choosing);
  });
  return kOk;
}

LOWPREC_END
