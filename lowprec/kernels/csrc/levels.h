// Weights and quantization sets: nearest levels, the skewed direction of ASkewSGD,
// proximal maps. Every line is an operation of the portable code in lowprec/optim, in
// its order; there the formulas are explained.
#pragma once
#include "loops.h"
#include "rounding.h"
#include "table.h"

LOWPREC_BEGIN

constexpr int64_t kScanned = 16;  // levels up to which comparing with all is fastest

// The levels of a row, and where a number lies between them.
template <class C>
class LevelRow {
  using Float = typename C::Float;
  using Int = typename C::Int;

 public:
  LevelRow(const Float* levels, const Float* middles, int64_t width, Float spacing)
      : levels_(levels), middles_(middles), width_(width), spacing_(spacing) {
    count_ = width;
    while (count_ > 1 && levels[count_ - 1] == Float(__builtin_inf())) --count_;
    last_ = levels[count_ - 1];
    first_ = levels[0];
    second_ = levels[width > 1];
    const Float cell = spacing != Float(0) ? spacing : second_ - first_;
    const Float rate = Float(0x1p31) / cell;
    equal_ = spacing != Float(0) || count_ == 2;
    cell_ = cell;
    rate_ = equal_ && rate < Float(__builtin_inf()) ? rate : 0;
  }

  int64_t count() const { return count_; }
  Float first() const { return first_; }
  Float last() const { return last_; }
  bool equal() const { return equal_; }
  Float first_cell() const { return cell_; }

  // The ends of the cell around z; those of the outermost cell beyond all levels.
  LOWPREC_INLINE void cell(VFloat<C> z, VFloat<C>* lower, VFloat<C>* upper) const {
    if (spacing_ != Float(0)) return equidistant(z, lower, upper);
    if (count_ > kScanned) {
      const VInt<C> index = bisect(levels_ + 1, count_ - 2, z);
      *lower = gather<C>(levels_, index);
      *upper = gather<C>(levels_ + 1, index);
      return;
    }
    *lower = splat<VFloat<C>>(first_);
    *upper = splat<VFloat<C>>(second_);
    for (int64_t j = 1; j < count_ - 1; ++j) {
      const VFloat<C> level = splat<VFloat<C>>(levels_[j]);
      const VInt<C> above = z >= level;
      *lower = above ? level : *lower;
      *upper = above ? splat<VFloat<C>>(levels_[j + 1]) : *upper;
    }
  }

  // About 2^31 passed / (upper - lower), wrong by some units in the last place.
  LOWPREC_INLINE VFloat<C> share(VFloat<C> passed, VFloat<C> lower,
                                 VFloat<C> upper) const {
    return rate_ != Float(0) ? passed * rate_
                             : passed / (upper - lower) * Float(0x1p31);
  }

  LOWPREC_INLINE VFloat<C> nearest(VFloat<C> z) const {
    return z == z ? nearest_to_number(z) : z;
  }

  // Any level if z is NaN.
  LOWPREC_INLINE VFloat<C> nearest_to_number(VFloat<C> z) const {
    VFloat<C> level;
    if (spacing_ != Float(0)) {
      VFloat<C> upper;
      equidistant(z, &level, &upper);
      level = z >= level + spacing_ / 2 ? upper : level;
    } else if (count_ > kScanned) {
      level = gather<C>(levels_, bisect(middles_, count_ - 1, z));
    } else {
      level = splat<VFloat<C>>(levels_[0]);
      for (int64_t j = 0; j < count_ - 1; ++j)
        level = z >= splat<VFloat<C>>(middles_[j]) ? splat<VFloat<C>>(levels_[j + 1])
                                                   : level;
    }
    return level;
  }

 private:
  // Exact, because spacings are powers of two of at most 1.
  LOWPREC_INLINE void equidistant(VFloat<C> z, VFloat<C>* lower,
                                  VFloat<C>* upper) const {
    const Float highest = last_ - spacing_;
    VFloat<C> level = floor_of<C>(z * (1 / spacing_)) * spacing_;
    level = level > highest ? splat<VFloat<C>>(highest) : level;
    level = level < first_ ? splat<VFloat<C>>(first_) : level;
    *lower = level + Float(0);  // no level is -0
    *upper = level + spacing_;
  }

  // How many of `count` increasing bounds are at most z.
  static LOWPREC_INLINE VInt<C> bisect(const Float* bounds, int64_t count,
                                       VFloat<C> z) {
    VInt<C> index = {};
    while (count > 1) {
      const int64_t half = count / 2;
      index -= (gather<C>(bounds + half, index) <= z) & Int(-half);
      count -= half;
    }
    return index - (gather<C>(bounds, index) <= z);
  }

  const Float* levels_;
  const Float* middles_;
  int64_t width_, count_;
  Float spacing_, first_, second_, last_;
  bool equal_;  // whether all cells are as wide as the first
  Float cell_;  // width of the first cell
  Float rate_;  // 2^31 cells per unit; 0 if cells differ or are too small for it
};

// What a task does to the elements that one row and one scale serve.
template <class C, int64_t operation>
struct LevelFunction {
  using Float = typename C::Float;
  LevelRow<C> row;
  Float scale, epsilon, widest, rate, clip, factor, divisor, low, high;
  bool clip_by_size, midpoint_moves, all_free;

  LevelFunction(const LevelTask& task, LevelRow<C> levels, Float s)
      : row(levels),
        scale(s),
        epsilon(Float(task.epsilon)),
        widest(Float(2 * free_root(task.epsilon) * (1 + 2 * kUlp))),
        rate(Float(-task.alpha)),
        clip(Float(task.clip)),
        factor(Float(task.factor)),
        divisor(Float(1 + task.factor)),
        low((task.low == task.low ? Float(task.low) : levels.first()) * s),
        high((task.high == task.high ? Float(task.high) : levels.last()) * s),
        clip_by_size(task.clip_by_size != 0),
        midpoint_moves(task.midpoint_moves != 0),
        all_free(levels.equal() && levels.first_cell() <= widest) {}

  // Distance of 1 and the next larger number.
  static constexpr double kUlp = C::width == 32 ? 0x1p-23 : 0x1p-52;

  // Half the width of the cells of which only the mid-point is not inside the slack.
  static double free_root(double epsilon) {
    const double root = __builtin_sqrt(epsilon);
    return operation == kSkewQuadratic ? root : __builtin_sqrt(root);
  }

  LOWPREC_INLINE VFloat<C> in_units(VFloat<C> w) const {
    return scale == Float(1) ? w : w / scale;
  }

  LOWPREC_INLINE VFloat<C> clamped(VFloat<C> w) const {
    return within<C>(w, splat<VFloat<C>>(low), splat<VFloat<C>>(high));
  }

  // Clamps what it quantizes.
  LOWPREC_INLINE VFloat<C> operator()(VFloat<C>* weights, VFloat<C> d,
                                      const uint32_t* words) const {
    if constexpr (operation == kNearestLevel || operation == kSampledLevel)
      *weights = clamped(*weights);
    const VFloat<C> z = in_units(*weights);
    if constexpr (operation >= kSkewQuadratic)
      return skewed(z, d);
    else if constexpr (operation == kNearestLevel)
      return row.nearest(z) * scale;
    else if constexpr (operation == kSampledLevel)
      return sampled(z, words) * scale;
    else if constexpr (operation == kFromLevel)
      return z - row.nearest_to_number(z);
    else
      return clamped(proximal(z) * scale);
  }

  LOWPREC_INLINE VFloat<C> skewed(VFloat<C> z, VFloat<C> d) const {
    VFloat<C> lower, upper;
    row.cell(z, &lower, &upper);
    VFloat<C> slope = lower + upper - z - z;
    VFloat<C> s = (z - lower) * (upper - z);
    if constexpr (operation != kSkewExtended) {
      const VInt<C> left = z < row.first(), right = z >= row.last();
      s = left ? row.first() - z : right ? z - row.last() : s;
      slope = left    ? splat<VFloat<C>>(Float(-1))
              : right ? splat<VFloat<C>>(Float(1))
                      : slope;
    }
    const bool quadratic = operation == kSkewQuadratic;
    const VFloat<C> derivative = quadratic ? -slope : slope * s * Float(-2);
    const VFloat<C> psi = epsilon - (quadratic ? s : s * s);
    const VInt<C> flat = derivative == Float(0);
    const VFloat<C> pull = psi * rate;
    VFloat<C> u = pull / (flat ? splat<VFloat<C>>(Float(1)) : derivative);
    u = flat ? VFloat<C>{} : u;
    u = u > clip ? splat<VFloat<C>>(clip) : u;
    u = u < -clip ? splat<VFloat<C>>(-clip) : u;
    u *= scale;
    VInt<C> direct;
    if (clip_by_size) {
      const VFloat<C> toward = -(sign_of(derivative) * d);
      direct = toward >= (u < Float(0) ? -u : u);
    } else {
      direct = -(d * derivative) >= pull * scale;
    }
    VInt<C> free = {};
    if (all_free)
      free = (z >= row.first()) & (z <= row.last());
    else if (!row.equal() && row.count() > 1)
      free = (z >= row.first()) & (z <= row.last()) & (upper - lower <= widest);
    direct |= (psi > Float(0)) | free;
    const VInt<C> middle = flat & (psi < Float(0)) & ~free;
    if (midpoint_moves) {
      direct &= ~middle;
      u = middle ? splat<VFloat<C>>(clip * scale) : u;
    } else {
      direct |= middle;
    }
    return direct ? d : -u;
  }

  LOWPREC_INLINE VFloat<C> sampled(VFloat<C> z, const uint32_t* words) const {
    if (row.count() < 2) return row.nearest(z);
    VFloat<C> lower, upper;
    row.cell(z, &lower, &upper);
    if constexpr (C::width == 32) {
      // Halves of both sides of the comparison below, for a signed conversion. Up to
      // 2^32 their errors add up to less than the tolerance; larger bounds are far
      // away. NaN goes the exact way.
      const VFloat<C> bound = row.share(z - lower, lower, upper);
      const VBits<C> half = load_words<C>(words) >> 1;
      const VFloat<C> room = bound - __builtin_convertvector((VInt<C>)half, VFloat<C>);
      const VFloat<C> size = (VFloat<C>)((VBits<C>)room & (Layout<C>::sign - 1));
      if (__builtin_expect(all_greater<C>(size, splat<VFloat<C>>(0x1p12f)), true))
        return room > Float(0) ? upper : lower;
    }
    return sampled_exactly(z, lower, upper, words);
  }

  static __attribute__((noinline)) VFloat<C> sampled_exactly(VFloat<C> z,
                                                             VFloat<C> lower,
                                                             VFloat<C> upper,
                                                             const uint32_t* words) {
    typedef double Wide __attribute__((vector_size(8 * C::lanes)));
    const Wide share = __builtin_convertvector(z - lower, Wide) /
                       __builtin_convertvector(upper - lower, Wide);
    const Wide word =
        __builtin_convertvector(load<typename Vector<C>::Words>(words), Wide);
    const VInt<C> up = __builtin_convertvector(word < share * 0x1p32, VInt<C>);
    const VFloat<C> level = up ? upper : lower;
    return z == z ? level : z;
  }

  LOWPREC_INLINE VFloat<C> proximal(VFloat<C> z) const {
    const VFloat<C> q = row.nearest(z);
    if constexpr (operation == kProxSquare)
      return (q * factor + z) / divisor;
    const VFloat<C> rest = z - q;
    if constexpr (operation == kProxNorm) return rest * factor + q;
    VFloat<C> size = (rest < Float(0) ? -rest : rest) - factor;
    size = size < Float(0) ? VFloat<C>{} : size;
    return size * sign_of(rest) + q;
  }

  static LOWPREC_INLINE VFloat<C> sign_of(VFloat<C> x) {
    const VFloat<C> one = splat<VFloat<C>>(Float(1));
    const VFloat<C> negative = x < Float(0) ? -one : VFloat<C>{};
    return x > Float(0) ? one : negative;
  }
};

// A vector of the first `count` lanes, of which there are all but at an array's end.
template <class V, class T>
LOWPREC_INLINE void load_some(V* vector, const T* from, int64_t count) {
  if (count == int64_t(sizeof(V) / sizeof(T)))
    *vector = load<V>(from);
  else
    memcpy(vector, from, size_t(count) * sizeof(T));
}

template <class V, class T>
LOWPREC_INLINE void store_some(T* to, V vector, int64_t count) {
  if (count == int64_t(sizeof(V) / sizeof(T)))
    store(to, vector);
  else
    memcpy(to, &vector, size_t(count) * sizeof(T));
}

// The words of a group of counters.
LOWPREC_INLINE void random_words(uint64_t block, uint64_t seed, uint32_t step,
                                 uint32_t* words) {
  if ((block + kLanes * kGroups) >> 32)
    philox_far(block, seed, words, step);
  else
    philox_groups<kGroups, true>(block, seed, step, kPurposeRound, words);
}

// Elements begin .. begin + count - 1, which one row and one scale serve; `keeps` the
// clamped weights, and what `out` holds already.
template <class C, int64_t operation, bool keeps>
void level_run(const LevelTask& task, const LevelFunction<C, operation>& shared,
               int64_t begin, int64_t count) {
  using Float = typename C::Float;
  const LevelFunction<C, operation> function = shared;  // cannot alias the output
  constexpr bool directed = operation >= kSkewQuadratic;
  constexpr bool random = operation == kSampledLevel;
  Float* weights = (Float*)task.weights + begin;
  const Float* directions = directed ? (const Float*)task.directions + begin : weights;
  Float* out = (Float*)task.out + begin;
  // As many elements as a group of counters serves: then the processor makes the words
  // of the next ones while it works on these.
  constexpr int64_t group = 4 * kLanes * kGroups;
  alignas(64) uint32_t words[random ? group + C::lanes : 1];
  // The lanes behind the last element read words that no counter has made.
  if (random) memset(words + group, 0, C::lanes * sizeof(uint32_t));
  for (int64_t start = 0, stop; start < count; start = stop) {
    int64_t skip = 0;
    if (random) {
      const uint64_t index = task.offset + uint64_t(begin + start);
      skip = int64_t(index & 3);
      stop = start + smaller(group - skip, count - start);
      random_words(index >> 2, task.seed, uint32_t(task.step), words);
    } else {
      stop = count;
    }
    const uint32_t* next = words + skip;
    int64_t i = start;
    for (; i + C::lanes <= stop; i += C::lanes) {
      const VFloat<C> given = load<VFloat<C>>(weights + i);
      VFloat<C> w = given;
      const VFloat<C> result = function(&w, load<VFloat<C>>(directions + i), next);
      // Few weights leave the hull, or their nearest level, in a step: what would be
      // written is there already.
      if (keeps && any_different<C>(w, given)) store(weights + i, w);
      if (random || !keeps || any_different<C>(result, load<VFloat<C>>(out + i)))
        store(out + i, result);
      if (random) next += C::lanes;
    }
    if (i < stop) {
      const int64_t some = stop - i;
      VFloat<C> w = {}, d = {};
      load_some(&w, weights + i, some);
      if (directed) load_some(&d, directions + i, some);
      const VFloat<C> result = function(&w, d, next);
      if (keeps) store_some(weights + i, w, some);
      store_some(out + i, result, some);
    }
  }
}

template <class C, int64_t operation>
void level_run(const LevelTask& task, const LevelFunction<C, operation>& function,
               int64_t begin, int64_t count) {
  if constexpr (operation == kNearestLevel || operation == kSampledLevel)
    if (task.keeps_clamped)
      return level_run<C, operation, true>(task, function, begin, count);
  level_run<C, operation, false>(task, function, begin, count);
}

// Calls `part` with a function of levels, and those of the elements begin .. begin +
// count - 1 that it serves.
template <class C, int64_t operation, class F>
LOWPREC_INLINE void level_runs(const LevelTask& task, int64_t begin, int64_t count,
                               F part) {
  using Float = typename C::Float;
  const Float* levels = (const Float*)task.levels;
  const Float* middles = (const Float*)task.middles;
  const Float* scales = (const Float*)task.scales;
  const int64_t endless = INT64_MAX, end = begin + count;
  while (begin < end) {
    const int64_t index = task.first + begin;
    const int64_t row = task.level_run ? index / task.level_run : 0;
    const int64_t scale = task.scale_run ? index / task.scale_run : 0;
    const int64_t level_end = task.level_run ? (row + 1) * task.level_run : endless;
    const int64_t scale_end = task.scale_run ? (scale + 1) * task.scale_run : endless;
    const int64_t next = smaller(level_end, scale_end);
    const int64_t some = smaller(end - begin, next - index);
    const LevelRow<C> set(levels + row * task.width, middles + row * (task.width - 1),
                          task.width, Float(task.spacing));
    part(LevelFunction<C, operation>(task, set, scales[scale]), begin, some);
    begin += some;
  }
}

// The same for all elements, by several threads.
template <class C, int64_t operation, class F>
LOWPREC_INLINE void for_level_runs(const LevelTask& task, F part) {
  for_parts(task.count, int(task.threads), kNearest, [&](int64_t begin, int64_t count) {
    level_runs<C, operation>(task, begin, count, part);
  });
}

template <class C, int64_t operation>
Status level_loop(const LevelTask& task) {
  for_level_runs<C, operation>(
      task, [&](const LevelFunction<C, operation>& function, int64_t begin,
                int64_t count) { level_run(task, function, begin, count); });
  return kOk;
}

LOWPREC_END
