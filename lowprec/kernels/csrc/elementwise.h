// Rounding arrays: one loop per mode, split into parts for threads.
#pragma once
#include "fast.h"
#include "table.h"
#include "tapered.h"
#include "wrapping.h"

LOWPREC_BEGIN

template <class C, int64_t mode>
void round_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                const Code&, const Plan<C>& shared, bool) {
  struct Rounding {
    Plan<C> plan;
    LOWPREC_INLINE VBits<C> exact(VBits<C> bits) const {
      return round_bits<C, mode>(bits, plan);
    }
  };
  exact_vectors<C>(x, out, count, Rounding{shared});
}

template <class C, int64_t mode, int64_t variant>
void round_words(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                 const Code&, const Plan<C>& shared, uint64_t seed, uint64_t first) {
  struct Rounding : AlwaysExact<C> {
    Plan<C> plan;
    explicit Rounding(const Plan<C>& given) : plan(given) {}
    LOWPREC_INLINE VBits<C> exact(VBits<C> bits, VBits<C> word) const {
      return round_bits<C, mode, variant>(bits, plan, word);
    }
  };
  for_random_vectors<C>(x, out, count, seed, first, Rounding(shared));
}

template <class C>
RoundPart<C> general_rounding(int64_t mode) {
  switch (mode) {
    case kNearestAway:
      return round_part<C, kNearestAway>;
    case kNearestZero:
      return round_part<C, kNearestZero>;
    case kTowardPositive:
      return round_part<C, kTowardPositive>;
    case kTowardNegative:
      return round_part<C, kTowardNegative>;
    case kTowardZero:
      return round_part<C, kTowardZero>;
    case kToOdd:
      return round_part<C, kToOdd>;
    default:
      return round_part<C, kNearestEven>;
  }
}

template <class C>
WordsPart<C> general_stochastic(const Code& code) {
  if (code.mode == kStochasticEqual) return round_words<C, kStochasticEqual, kA>;
  if (code.variant == kB) return round_words<C, kStochastic, kB>;
  if (code.variant == kC) return round_words<C, kStochastic, kC>;
  return round_words<C, kStochastic, kA>;
}

// How a rounding is done: the loop for `plain`, and what then remains.
template <class C>
struct Task {
  Code plain;
  Plan<C> plan;
  bool finished;  // nothing remains

  Status make(const Code& code) {
    plain = unfinished(code);
    const bool wraps = code.saturation == kWrap, tapered = code.flags & kTapered;
    if (wraps) plain.saturation = kNone;
    const Status status = make_plan<C>(plain, &plan);
    if (status != kOk) return status;
    if ((wraps && !Wrapping<C>::valid(code)) || !Finish<C>::valid(code) ||
        (tapered && !Tapered<C>::valid(code)) || code.flags >= 2 * kTapered) {
      return kBadArgument;
    }
    if (tapered && !Tapered<C>::fits(code)) return kCarrierTooNarrow;
    const bool parity = code.mode == kNearestEven || code.mode == kToOdd;
    plan.alternating = parity && code.flags & kAlternating;
    finished = wraps || !(code.flags & kFinished);
    return kOk;
  }
};

template <class C>
RoundLoop<C> round_loop(const Code& code, const Task<C>& task) {
  if (code.saturation == kWrap) return {wrapping_rounding<C>(code.mode), kNearest};
  if (code.flags & kTapered) return {tapered_rounding<C>(code.mode), kNearest};
  if (!task.plan.alternating) {
    const RoundLoop<C> fast = fast_rounding<C>(task.plain, task.plan);
    if (fast.part != nullptr) return fast;
  }
  return {general_rounding<C>(code.mode), kNearest};
}

template <class C>
WordsLoop<C> words_loop(const Code& code, const Task<C>& task) {
  if (code.saturation == kWrap) return {wrapping_stochastic<C>(code), kNearest};
  if (code.flags & kTapered) return {tapered_stochastic<C>(code), kNearest};
  const WordsLoop<C> fast = fast_stochastic<C>(task.plain, task.plan);
  if (fast.part != nullptr) return fast;
  return {general_stochastic<C>(code), kNearest};
}

// Calls `round` with chunks of an array, and finishes each while a cache has it.
template <class C, class F>
void finish_chunks(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                   const Finish<C>& finish, uint64_t seed, uint64_t first, F round) {
  typename C::Bits given[kChunk];
  for (int64_t i = 0; i < count; i += kChunk) {
    const int64_t some = smaller(kChunk, count - i);
    if (finish.smallest) memcpy(given, x + i, size_t(some) * sizeof(*x));
    round(i, some);
    finish.apply(given, out + i, some, seed, first + uint64_t(i));
  }
}

template <class C>
Status round_array(const Elementwise& given) {
  using Bits = typename C::Bits;
  const Code& code = given.code;
  if (code.mode >= kStochastic) return kBadArgument;
  Task<C> task;
  const Status status = task.make(code);
  if (status != kOk) return status;
  const RoundLoop<C> loop = round_loop<C>(code, task);
  const bool own = code.saturation == kWrap || code.flags & kTapered;
  const Code& shared = own ? code : task.plain;
  const Finish<C> finish(code, task.plan);
  const Bits* x = (const Bits*)given.x;
  Bits* out = (Bits*)given.out;
  const bool stream = task.finished && x != out &&
                      given.count > given.cache / int64_t(sizeof(Bits));
  for_parts(given.count, given.threads, loop.direction, [&](int64_t i, int64_t count) {
    if (task.finished)
      return loop.part(x + i, out + i, count, shared, task.plan, stream);
    finish_chunks<C>(x + i, out + i, count, finish, 0, 0, [&](int64_t j, int64_t some) {
      loop.part(x + i + j, out + i + j, some, shared, task.plan, false);
    });
  });
  return kOk;
}

template <class C>
Status stochastic_array(const Elementwise& given) {
  using Bits = typename C::Bits;
  const Code& code = given.code;
  if (code.mode < kStochastic) return kBadArgument;
  Task<C> task;
  const Status status = task.make(code);
  if (status != kOk) return status;
  const WordsLoop<C> loop = words_loop<C>(code, task);
  const bool own = code.saturation == kWrap || code.flags & kTapered;
  const Code& shared = own ? code : task.plain;
  const Finish<C> finish(code, task.plan);
  const Bits* x = (const Bits*)given.x;
  Bits* out = (Bits*)given.out;
  for_parts(given.count, given.threads, loop.direction, [&](int64_t i, int64_t count) {
    const uint64_t first = given.offset + uint64_t(i);
    if (task.finished)
      return loop.part(x + i, out + i, count, shared, task.plan, given.seed, first);
    finish_chunks<C>(x + i, out + i, count, finish, given.seed, first,
                     [&](int64_t j, int64_t some) {
                       loop.part(x + i + j, out + i + j, some, shared, task.plan,
                                 given.seed, first + uint64_t(j));
                     });
  });
  return kOk;
}

LOWPREC_END
