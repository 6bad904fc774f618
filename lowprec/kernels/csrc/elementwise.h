// Rounding arrays: one loop per mode, split into parts for threads.
#pragma once
#include "fast.h"
#include "table.h"

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

template <class C>
Status round_array(const Elementwise& task) {
  using Bits = typename C::Bits;
  Plan<C> plan;
  const Status status = make_plan<C>(task.code, &plan);
  if (status != kOk) return status;
  if (stochastic(task.code)) return kBadArgument;
  RoundLoop<C> loop = fast_rounding<C>(task.code, plan);
  if (loop.part == nullptr) loop = {general_rounding<C>(task.code.mode), kNearest};
  const Bits* x = (const Bits*)task.x;
  Bits* out = (Bits*)task.out;
  const bool stream = x != out && task.count > task.cache / int64_t(sizeof(Bits));
  for_parts(task.count, task.threads, loop.direction, [&](int64_t i, int64_t count) {
    loop.part(x + i, out + i, count, task.code, plan, stream);
  });
  return kOk;
}

template <class C>
Status stochastic_array(const Elementwise& task) {
  using Bits = typename C::Bits;
  Plan<C> plan;
  const Status status = make_plan<C>(task.code, &plan);
  if (status != kOk) return status;
  if (!stochastic(task.code)) return kBadArgument;
  WordsLoop<C> loop = fast_stochastic<C>(task.code, plan);
  if (loop.part == nullptr) loop = {general_stochastic<C>(task.code), kNearest};
  const Bits* x = (const Bits*)task.x;
  Bits* out = (Bits*)task.out;
  for_parts(task.count, task.threads, loop.direction, [&](int64_t i, int64_t count) {
    loop.part(x + i, out + i, count, task.code, plan, task.seed,
              task.offset + uint64_t(i));
  });
  return kOk;
}

LOWPREC_END
