// Loops over arrays, a vector at a time.
#pragma once
#include "code.h"
#include "environment.h"
#include "philox.h"
#include "simd.h"

LOWPREC_BEGIN

// Applies `function` to the vectors of an array of any length and the indices of their
// first elements.
template <class In, class Out, class From, class To, class F>
LOWPREC_INLINE void each_vector(const From* x, To* out, int64_t count, F function) {
  constexpr int64_t lanes = sizeof(In) / sizeof(From);
  static_assert(lanes == sizeof(Out) / sizeof(To), "one output per input");
  for (int64_t i = 0; i < count; i += lanes) {
    if (i + lanes <= count) {
      store(out + i, Out(function(load<In>(x + i), i)));
      continue;
    }
    From rest[lanes] = {0};
    To results[lanes];
    memcpy(rest, x + i, size_t(count - i) * sizeof(From));
    store(results, Out(function(load<In>(rest), i)));
    memcpy(out + i, results, size_t(count - i) * sizeof(To));
  }
}

// Rounds every element by the function that is always right. Out of line, for size:
// every loop calls it at its ends.
template <class C, class R>
__attribute__((noinline)) void exact_vectors(const typename C::Bits* x,
                                             typename C::Bits* out, int64_t count,
                                             const R& shared) {
  const R rounding = shared;  // a local copy cannot alias the output
  each_vector<VBits<C>, VBits<C>>(x, out, count,
                                  [&](VBits<C> bits, int64_t)
                                      LOWPREC_LAMBDA { return rounding.exact(bits); });
}

// The same with one random word per element, of which whole vectors may be read.
template <class C, class R>
__attribute__((noinline)) void exact_words(const typename C::Bits* x,
                                           typename C::Bits* out, int64_t count,
                                           const uint32_t* words, const R& shared) {
  const R rounding = shared;
  each_vector<VBits<C>, VBits<C>>(
      x, out, count, [&](VBits<C> bits, int64_t i) LOWPREC_LAMBDA {
        return rounding.exact(bits, load_words<C>(words + i));
      });
}

// Where part t of `team` begins, at a multiple of a cache line of `count` elements.
inline int64_t part_begin(int64_t count, int t, int team) {
  return t == team ? count : count / team * t & ~int64_t(63);
}

// Calls `part` with the beginning and the number of the elements of each thread.
template <class F>
LOWPREC_INLINE void for_parts(int64_t count, int threads, Direction direction, F part) {
  const int team = useful_threads(count, threads);
#pragma omp parallel for num_threads(team) schedule(static, 1) if (team > 1)
  for (int t = 0; t < team; ++t) {
    const DefaultEnvironment environment(direction);
    const int64_t begin = part_begin(count, t, team);
    part(begin, part_begin(count, t + 1, team) - begin);
  }
}

// Vectors that one test for hard lanes serves.
constexpr int kBlock = 4;

// Base of stochastic roundings that have no fast function.
template <class C>
struct AlwaysExact {
  template <int count>
  static LOWPREC_INLINE bool hard(const VBits<C>*) {
    return true;
  }
  static LOWPREC_INLINE VBits<C> fast(VBits<C> bits, VBits<C>) { return bits; }
};

// Elements before the first vector boundary of `out`.
template <class C>
int64_t before_boundary(const typename C::Bits* out) {
  const size_t over = (uintptr_t)out % kVectorBytes;
  return int64_t((over ? kVectorBytes - over : 0) / sizeof(*out));
}

// Rounds an array; input and output may be the same. A block of vectors in which no
// lane is `hard` takes the `fast` function, any other the `exact` one. `stream` writes
// past the caches, for outputs that they cannot hold anyway.
template <class C, class R>
LOWPREC_INLINE void for_vectors(const typename C::Bits* x, typename C::Bits* out,
                                int64_t count, R rounding, bool stream) {
  constexpr int64_t size = kBlock * C::lanes;
  int64_t i = stream ? smaller<int64_t>(before_boundary<C>(out), count) : 0;
  if (i) exact_vectors<C>(x, out, i, rounding);
  while (i + size <= count) {
    // The call is outside of this loop, which so keeps its constants in registers.
    for (; i + size <= count; i += size) {
      VBits<C> block[kBlock];
#pragma GCC unroll 4
      for (int v = 0; v < kBlock; ++v) block[v] = load<VBits<C>>(x + i + v * C::lanes);
      if (__builtin_expect(rounding.template hard<kBlock>(block), false)) break;
#pragma GCC unroll 4
      for (int v = 0; v < kBlock; ++v) block[v] = rounding.fast(block[v]);
      if (stream) {
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v)
          store_streaming(out + i + v * C::lanes, block[v]);
      } else {
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v) store(out + i + v * C::lanes, block[v]);
      }
    }
    if (i + size > count) break;
    exact_vectors<C>(x + i, out + i, size, rounding);
    i += size;
  }
  if (stream) finish_streaming();
  if (i < count) exact_vectors<C>(x + i, out + i, count - i, rounding);
}

// The words of a group of counters of any size. Out of line: seldom called.
__attribute__((noinline)) inline void philox_far(uint64_t block, uint64_t seed,
                                                 uint32_t* words, uint32_t step = 0) {
  philox_groups<kGroups>(block, seed, step, kPurposeRound, words);
}

// Rounds an array with the random words of its elements, of which the first has the
// linear index `first`; else as `for_vectors`.
template <class C, class R>
LOWPREC_INLINE void for_random_vectors(const typename C::Bits* x, typename C::Bits* out,
                                       int64_t count, uint64_t seed, uint64_t first,
                                       R rounding) {
  constexpr int kWords = 4 * kLanes * kGroups, vectors = kWords / C::lanes;
  // As many vectors as a group of counters serves: then the processor makes the words
  // of the next group while it rounds with these.
  alignas(64) uint32_t words[kWords + C::lanes];
  int64_t i = 0;
  uint64_t block = first >> 2;
  const int64_t skip = int64_t(first & 3);
  if (skip) {
    const int64_t head = smaller<int64_t>(4 - skip, count);
    philox_far(block++, seed, words);
    exact_words<C>(x, out, i = head, words + skip, rounding);
  }
  // Counters below 2^32 have a high word of 0, which saves two multiplications.
  const bool low = block + uint64_t(count) / 4 + kWords < uint64_t(1) << 32;
  while (i < count) {
    // The calls are outside of this loop, which so keeps its constants in registers.
    for (; low && i + kWords <= count; i += kWords, block += kWords / 4) {
      VBits<C> in[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) in[v] = load<VBits<C>>(x + i + v * C::lanes);
      if (__builtin_expect(rounding.template hard<vectors>(in), false)) break;
      philox_groups<kGroups, true>(block, seed, 0, kPurposeRound, words);
#pragma GCC unroll 8
      for (int w = 0; w < kWords; w += C::lanes) {
        const VBits<C> bits = load<VBits<C>>(x + i + w);
        store(out + i + w, rounding.fast(bits, load_words<C>(words + w)));
      }
    }
    if (i == count) break;
    const int64_t some = smaller<int64_t>(kWords, count - i);
    philox_far(block, seed, words);
    exact_words<C>(x + i, out + i, some, words, rounding);
    i += some;
    block += kWords / 4;
  }
}

LOWPREC_END
