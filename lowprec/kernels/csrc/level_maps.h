// Maps of weights by the functions of levels.h, and distances from the levels.
#pragma once
#include "levels.h"

LOWPREC_BEGIN

// A sum of squares whose order depends on nothing but these numbers: of a block's
// elements, kSums at a time, and then of the halves of what is left.
constexpr int64_t kSquared = 4096, kSums = 32;

template <class Float>
class SumOfSquares {
  static constexpr int lanes = Binary64::lanes;

 public:
  LOWPREC_INLINE void add(const Float* x) {
#pragma GCC unroll 16
    for (int v = 0; v < kSums / lanes; ++v) {
      const VFloat<Binary64> wide = load_wide(x + v * lanes);
      if constexpr (sizeof(Float) == 4)  // whose squares are exact in float64
        sums_[v] = multiply_add<Binary64>(wide, wide, sums_[v]);
      else
        sums_[v] += wide * wide;
    }
  }

  double total() const {
    double rest[kSums];
    memcpy(rest, sums_, sizeof(rest));
    for (int64_t half = kSums / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) rest[j] += rest[j + half];
    return rest[0];
  }

 private:
  VFloat<Binary64> sums_[kSums / lanes] = {};
};

// Sum of the squared distances of a block that one row and one scale serve.
template <class C>
double squared_distance(const LevelFunction<C, kFromLevel>& shared,
                        const typename C::Float* weights) {
  const LevelFunction<C, kFromLevel> function = shared;
  SumOfSquares<typename C::Float> sum;
  for (int64_t i = 0; i < kSquared; i += kSums) {
    alignas(64) typename C::Float distances[kSums];
#pragma GCC unroll 16
    for (int64_t j = 0; j < kSums; j += C::lanes) {
      VFloat<C> w = load<VFloat<C>>(weights + i + j);
      store(distances + j, function(&w, w, nullptr));
    }
    sum.add(distances);
  }
  return sum.total();
}

// The same of any block.
template <class C>
double squared_distance(const LevelTask& block) {
  using Float = typename C::Float;
  alignas(64) Float distances[kSquared];
  LevelTask task = block;
  task.out = distances;
  double result = 0;
  bool direct = false;
  level_runs<C, kFromLevel>(
      task, 0, task.count,
      [&](const LevelFunction<C, kFromLevel>& function, int64_t i, int64_t count) {
        direct = count == kSquared;
        if (direct)
          result = squared_distance(function, (const Float*)task.weights);
        else
          level_run(task, function, i, count);
      });
  if (direct) return result;
  int64_t count = task.count;
  while (count % kSums != 0) distances[count++] = 0;
  SumOfSquares<Float> sum;
  for (int64_t i = 0; i < count; i += kSums) sum.add(distances + i);
  return sum.total();
}

// Writes the sum of the squared distances to the nearest levels of every block.
template <class C>
Status squared_distances(const LevelTask& task) {
  using Float = typename C::Float;
  const int64_t blocks = (task.count + kSquared - 1) / kSquared;
  const int team = useful_threads(task.count, int(task.threads));
#pragma omp parallel for num_threads(team) schedule(static, 1) if (team > 1)
  for (int t = 0; t < team; ++t) {
    const DefaultEnvironment environment;
    for (int64_t i = blocks * t / team; i < blocks * (t + 1) / team; ++i) {
      const int64_t begin = i * kSquared;
      LevelTask block = task;
      block.weights = (Float*)task.weights + begin;
      block.first += begin;
      block.count = smaller(kSquared, task.count - begin);
      ((double*)task.out)[i] = squared_distance<C>(block);
    }
  }
  return kOk;
}

template <class C>
Status level_array(const LevelTask& task) {
  if (task.count < 0 || task.width < 1) return kBadArgument;
  switch (task.operation) {
    case kNearestLevel:
      return level_loop<C, kNearestLevel>(task);
    case kSampledLevel:
      return level_loop<C, kSampledLevel>(task);
    case kFromLevel:
      return level_loop<C, kFromLevel>(task);
    case kSquaredDistances:
      return squared_distances<C>(task);
    case kProxAbsolute:
      return level_loop<C, kProxAbsolute>(task);
    case kProxSquare:
      return level_loop<C, kProxSquare>(task);
    case kProxNorm:
      return level_loop<C, kProxNorm>(task);
    case kSkewQuadratic:
      return level_loop<C, kSkewQuadratic>(task);
    case kSkewQuartic:
      return level_loop<C, kSkewQuartic>(task);
    case kSkewExtended:
      return level_loop<C, kSkewExtended>(task);
    default:
      return kBadArgument;
  }
}

LOWPREC_END
