// Loops over arrays, a vector at a time.
#pragma once
#include "code.h"
#include "philox.h"
#include "simd.h"

LOWPREC_BEGIN

// Applies `function` to fewer elements than a vector has. Out of line, for size: every
// loop calls it at its ends.
template <class C, class F>
__attribute__((noinline)) void partial_vector(const typename C::Bits* x,
                                              typename C::Bits* out, int64_t count,
                                              const F& function) {
  typename C::Bits rest[C::lanes] = {0};
  memcpy(rest, x, size_t(count) * sizeof(rest[0]));
  store(rest, function(load<VBits<C>>(rest)));
  memcpy(out, rest, size_t(count) * sizeof(rest[0]));
}

// The same with one random word per element, of which a whole vector may be read.
template <class C, class F>
__attribute__((noinline)) void partial_words(const typename C::Bits* x,
                                             typename C::Bits* out, int64_t count,
                                             const uint32_t* words, const F& function) {
  typename C::Bits rest[C::lanes] = {0};
  memcpy(rest, x, size_t(count) * sizeof(rest[0]));
  store(rest, function(load<VBits<C>>(rest), words));
  memcpy(out, rest, size_t(count) * sizeof(rest[0]));
}

// Elements before the first vector boundary of `out`.
template <class C>
int64_t before_boundary(const typename C::Bits* out) {
  const size_t over = (uintptr_t)out % kVectorBytes;
  return int64_t((over ? kVectorBytes - over : 0) / sizeof(*out));
}

// Applies `function` to every vector of an array; input and output may be the same.
// `stream` writes past the caches, for outputs that they cannot hold anyway.
template <class C, class F>
LOWPREC_INLINE void for_vectors(const typename C::Bits* x, typename C::Bits* out,
                                int64_t count, F function, bool stream) {
  int64_t i = 0;
  if (stream) {
    const int64_t head = before_boundary<C>(out);
    if (head >= count) stream = false;
    if (stream && head) partial_vector<C>(x, out, i = head, function);
  }
  if (stream) {
    for (; i + C::lanes <= count; i += C::lanes)
      store_streaming(out + i, function(load<VBits<C>>(x + i)));
    finish_streaming();
  } else {
    for (; i + C::lanes <= count; i += C::lanes)
      store(out + i, function(load<VBits<C>>(x + i)));
  }
  if (i < count) partial_vector<C>(x + i, out + i, count - i, function);
}

// The words of a group of counters of any size. Out of line: seldom called.
__attribute__((noinline)) inline void philox_far(uint64_t block, uint64_t seed,
                                                 uint32_t* words) {
  philox_groups<kGroups>(block, seed, 0, kPurposeRound, words);
}

// Applies `function` to vectors and a pointer to the random words of their elements, of
// which the first has the linear index `first`.
template <class C, class F>
LOWPREC_INLINE void for_random_vectors(const typename C::Bits* x, typename C::Bits* out,
                                       int64_t count, uint64_t seed, uint64_t first,
                                       F function) {
  constexpr int kWords = 4 * kLanes * kGroups;
  // As many vectors as a group of counters serves: then the processor makes the words
  // of the next group while it rounds with these.
  alignas(64) uint32_t words[kWords + C::lanes];
  int64_t i = 0;
  uint64_t block = first >> 2;
  const int64_t skip = int64_t(first & 3);
  if (skip) {
    const int64_t head = smaller<int64_t>(4 - skip, count);
    philox_far(block++, seed, words);
    while (i < head) {  // up to three elements: more than a vector of two has
      const int64_t some = smaller<int64_t>(C::lanes, head - i);
      partial_words<C>(x + i, out + i, some, words + skip + i, function);
      i += some;
    }
  }
  // Counters below 2^32 have a high word of 0, which saves two multiplications.
  const bool low = block + uint64_t(count) / 4 + kWords < uint64_t(1) << 32;
  for (; i + kWords <= count; i += kWords, block += kWords / 4) {
    if (low) {
      philox_groups<kGroups, true>(block, seed, 0, kPurposeRound, words);
    } else {
      philox_far(block, seed, words);
    }
#pragma GCC unroll 2
    for (int w = 0; w < kWords; w += C::lanes)
      store(out + i + w, function(load<VBits<C>>(x + i + w), words + w));
  }
  for (; i < count; block += kWords / 4) {
    philox_far(block, seed, words);
    for (int w = 0; w < kWords && i < count; w += C::lanes, i += C::lanes) {
      partial_words<C>(x + i, out + i, smaller<int64_t>(C::lanes, count - i), words + w,
                       function);
    }
  }
}

LOWPREC_END
