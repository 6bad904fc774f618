// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011), many counters at a time.
//
// Output element i takes word i mod 4 of the counter
// (lo32(i div 4), hi32(i div 4), step, purpose) under the key (lo32(seed), hi32(seed)).
#pragma once
#include "carrier.h"

LOWPREC_BEGIN

// One 32-bit counter word per 64-bit lane: x86 multiplies 32 x 32 -> 64 bits so.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));

// Product of the low halves of the lanes; the high halves may hold anything.
LOWPREC_INLINE Lanes multiply(Lanes a, uint32_t factor) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
  return (Lanes)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#else
  return (a & 0xFFFFFFFFu) * (uint64_t)factor;
#endif
}

// The high halves of the lanes, moved to the low ones.
LOWPREC_INLINE Lanes high_halves(Lanes a) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_DDBB);
#elif defined(__AVX2__)
  return (Lanes)_mm256_shuffle_epi32((__m256i)a, 0xF5);
#elif defined(__SSE2__)
  return (Lanes)_mm_shuffle_epi32((__m128i)a, 0xF5);
#else
  return a >> 32;
#endif
}

// The low halves of the lanes in the high ones, and the other way round.
LOWPREC_INLINE Lanes swap_halves(Lanes a) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_CDAB);
#elif defined(__AVX2__)
  return (Lanes)_mm256_shuffle_epi32((__m256i)a, 0xB1);
#elif defined(__SSE2__)
  return (Lanes)_mm_shuffle_epi32((__m128i)a, 0xB1);
#else
  return a >> 32 | a << 32;
#endif
}

LOWPREC_INLINE Lanes exclusive_or(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// The same for the low halves; the high ones are those of `a`.
LOWPREC_INLINE Lanes exclusive_or_low(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_ternarylogic_epi32((__m512i)a, 0x5555, (__m512i)b,
                                               (__m512i)c, 0x96);
#else
  return a ^ ((b ^ c) & 0xFFFFFFFFu);
#endif
}

// Even lanes of `a` and `b` in turn, or the odd ones.
LOWPREC_INLINE Lanes interleave(Lanes a, Lanes b, bool odd) {
#if defined(__AVX512F__)
  return odd ? __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
             : __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
#elif defined(__AVX2__)
  return odd ? __builtin_shufflevector(a, b, 1, 5, 3, 7)
             : __builtin_shufflevector(a, b, 0, 4, 2, 6);
#else
  return odd ? __builtin_shufflevector(a, b, 1, 3)
             : __builtin_shufflevector(a, b, 0, 2);
#endif
}

// The counter whose words CounterLanes::finish writes from a lane, less the first one:
// so ordered, it takes the cheapest shuffles.
constexpr int counter_of_lane(int lane) { return lane / 2 + lane % 2 * (kLanes / 2); }

LOWPREC_INLINE Lanes counter_ramp() {
  Lanes ramp;
  for (int lane = 0; lane < kLanes; ++lane)
    ramp[lane] = uint64_t(counter_of_lane(lane));
  return ramp;
}

constexpr int kRounds = 10;
constexpr uint32_t kFactor0 = 0xD2511F53u, kFactor1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

// Both halves of the key in one round.
struct RoundKey {
  uint32_t low, high;

  RoundKey() = default;
  RoundKey(uint64_t seed, int round)
      : low(uint32_t(seed) + uint32_t(round) * kWeyl0),
        high(uint32_t(seed >> 32) + uint32_t(round) * kWeyl1) {}
};

// kLanes counters between two rounds. Only low halves matter, so what the rounds leave
// in the high ones is harmless.
struct CounterLanes {
  Lanes c0, c1, c2, c3;

  LOWPREC_INLINE void round(Lanes k0, Lanes k1) {
    const Lanes p0 = multiply(c0, kFactor0), p1 = multiply(c2, kFactor1);
    c0 = exclusive_or(high_halves(p1), c1, k0);
    c2 = exclusive_or(high_halves(p0), c3, k1);
    c1 = p1;
    c3 = p0;
  }

  // The last round. Writes the words of all counters in their order.
  LOWPREC_INLINE void finish(Lanes k0, Lanes k1, uint32_t* out) const {
    const Lanes p0 = multiply(c0, kFactor0), p1 = multiply(c2, kFactor1);
    // Little-endian lanes: words 0 and 1, words 2 and 3.
    const Lanes first = exclusive_or_low(swap_halves(p1), c1, k0);
    const Lanes second = exclusive_or_low(swap_halves(p0), c3, k1);
    store(out, interleave(first, second, false));
    store(out + 2 * kLanes, interleave(first, second, true));
  }
};

// Several independent groups hide the latency of the multiplier. Each further group has
// the next blocks of the same step or, if `stride` is not 0, the same blocks of the
// next step; the words of group g go to out + g * stride then. `low` promises counters
// below 2^32.
template <int groups, bool low = false>
LOWPREC_INLINE void philox_groups(uint64_t block, uint64_t seed, uint32_t step,
                                  uint32_t purpose, uint32_t* out, int64_t stride = 0) {
  CounterLanes counters[groups];
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) {
    const Lanes counter = counter_ramp() + (stride ? block : block + g * kLanes);
    counters[g] = {counter, low ? Lanes{} : counter >> 32,
                   Lanes{} + (stride ? step + uint32_t(g) : step), Lanes{} + purpose};
  }
#pragma GCC unroll 10
  for (int round = 0; round < kRounds; ++round) {
    const RoundKey key(seed, round);
    const Lanes k0 = Lanes{} + key.low, k1 = Lanes{} + key.high;
#pragma GCC unroll 8
    for (int g = 0; g < groups; ++g) {
      if (round < kRounds - 1)
        counters[g].round(k0, k1);
      else
        counters[g].finish(k0, k1, out + g * (stride ? stride : 4 * kLanes));
    }
  }
}

constexpr int kGroups = kLanes == 8 ? 4 : 2;
// Words that philox_words may write beyond those asked for, on both sides together.
constexpr int kWordSlack = 4 * kLanes * kGroups + 4;

// Writes the words of elements first .. first + count - 1 and returns where the first
// one lies inside `buffer`, which has room for count + kWordSlack words.
inline const uint32_t* philox_words(uint64_t first, int64_t count, uint64_t seed,
                                    uint32_t step, uint32_t purpose, uint32_t* buffer) {
  const int64_t skip = int64_t(first & 3);
  uint64_t block = first >> 2;
  int64_t done = 0;
  const int64_t wanted = skip + count;
  const int64_t big = 4 * kLanes * kGroups;
  for (; wanted - done > 4 * kLanes; done += big, block += kLanes * kGroups)
    philox_groups<kGroups>(block, seed, step, purpose, buffer + done);
  for (; done < wanted; done += 4 * kLanes, block += kLanes)
    philox_groups<1>(block, seed, step, purpose, buffer + done);
  return buffer + skip;
}

// The same for kGroups consecutive steps: those of step + s begin s * stride words
// later. `buffer` has room for kGroups * stride words, and stride for count +
// kWordSlack.
inline const uint32_t* philox_steps(uint64_t first, int64_t count, uint64_t seed,
                                    uint32_t step, uint32_t purpose, uint32_t* buffer,
                                    int64_t stride) {
  const int64_t skip = int64_t(first & 3);
  uint64_t block = first >> 2;
  for (int64_t done = 0; done < skip + count; done += 4 * kLanes, block += kLanes)
    philox_groups<kGroups>(block, seed, step, purpose, buffer + done, stride);
  return buffer + skip;
}

LOWPREC_END
