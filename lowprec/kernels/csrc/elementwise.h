// Rounding arrays: one loop per mode, split into parts for threads.
#pragma once
#include "environment.h"
#include "fast.h"
#include "loops.h"
#include "philox.h"
#include "rounding.h"

LOWPREC_BEGIN

template <class C, int64_t mode>
void round_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                const Code&, const Plan<C>& shared) {
  const Plan<C> plan = shared;  // a local copy cannot alias the output
  for_vectors<C>(x, out, count, [plan](VBits<C> bits, int64_t) LOWPREC_LAMBDA {
    return round_bits<C, mode>(bits, plan);
  });
}

// `words` has room for a whole vector behind the last element.
template <class C, int64_t mode, int64_t variant>
void round_words(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                 const Code&, const Plan<C>& shared, const uint32_t* words) {
  const Plan<C> plan = shared;
  for_vectors<C>(x, out, count, [plan, words](VBits<C> bits, int64_t i) LOWPREC_LAMBDA {
    return round_bits<C, mode, variant>(bits, plan, load_words<C>(words + i));
  });
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
RoundWords<C> general_stochastic(const Code& code) {
  if (code.mode == kStochasticEqual) return round_words<C, kStochasticEqual, kA>;
  if (code.variant == kB) return round_words<C, kStochastic, kB>;
  if (code.variant == kC) return round_words<C, kStochastic, kC>;
  return round_words<C, kStochastic, kA>;
}

template <class C>
Status round_array(const typename C::Float* x, typename C::Float* out, int64_t count,
                   const Code& code, int threads) {
  using Bits = typename C::Bits;
  Plan<C> plan;
  const Status status = make_plan<C>(code, &plan);
  if (status != kOk) return status;
  if (stochastic(code)) return kBadArgument;
  RoundPart<C> part = fast_rounding<C>(code, plan);
  if (part == nullptr) part = general_rounding<C>(code.mode);
  const Bits* source = (const Bits*)x;
  Bits* target = (Bits*)out;
  const int team = useful_threads(count, threads);
  if (team == 1) {
    const DefaultEnvironment standard;
    part(source, target, count, code, plan);
    return kOk;
  }
#pragma omp parallel for num_threads(team) schedule(static, 1)
  for (int t = 0; t < team; ++t) {
    const DefaultEnvironment standard;
    const int64_t begin = count * t / team, end = count * (t + 1) / team;
    part(source + begin, target + begin, end - begin, code, plan);
  }
  return kOk;
}

constexpr int kChunk = 1024;  // random words held at a time

template <class C>
void stochastic_part(const typename C::Bits* x, typename C::Bits* out, int64_t count,
                     const Code& code, const Plan<C>& plan, RoundWords<C> part,
                     uint64_t seed, uint64_t first) {
  const DefaultEnvironment standard;
  alignas(64) uint32_t buffer[kChunk + kWordSlack];
  for (int64_t i = 0; i < count; i += kChunk) {
    const int64_t length = smaller<int64_t>(kChunk, count - i);
    const uint32_t* words =
        philox_words(first + i, length, seed, 0, kPurposeRound, buffer);
    part(x + i, out + i, length, code, plan, words);
  }
}

template <class C>
Status stochastic_array(const typename C::Float* x, typename C::Float* out,
                        int64_t count, const Code& code, uint64_t seed, uint64_t offset,
                        int threads) {
  using Bits = typename C::Bits;
  Plan<C> plan;
  const Status status = make_plan<C>(code, &plan);
  if (status != kOk) return status;
  if (!stochastic(code)) return kBadArgument;
  RoundWords<C> part = fast_stochastic<C>(code, plan);
  if (part == nullptr) part = general_stochastic<C>(code);
  const int team = useful_threads(count, threads);
#pragma omp parallel for num_threads(team) schedule(static, 1) if (team > 1)
  for (int t = 0; t < team; ++t) {
    const int64_t begin = count * t / team, end = count * (t + 1) / team;
    stochastic_part<C>((const Bits*)x + begin, (Bits*)out + begin, end - begin, code,
                       plan, part, seed, offset + begin);
  }
  return kOk;
}

LOWPREC_END
