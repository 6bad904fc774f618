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

LOWPREC_INLINE Lanes exclusive_or(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// Low halves of `low` in the low halves, of `high` in the high ones.
LOWPREC_INLINE Lanes combine(Lanes low, Lanes high) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_shuffle_epi32((__m512i)low, 0xAAAA, (__m512i)high,
                                          _MM_PERM_CCAA);
#else
  return (low & 0xFFFFFFFFu) | (high << 32);
#endif
}

LOWPREC_INLINE Lanes interleave(Lanes a, Lanes b, int high) {
#if defined(__AVX512F__)
  return high ? __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
              : __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#elif defined(__AVX2__)
  return high ? __builtin_shufflevector(a, b, 2, 6, 3, 7)
              : __builtin_shufflevector(a, b, 0, 4, 1, 5);
#else
  return high ? __builtin_shufflevector(a, b, 1, 3)
              : __builtin_shufflevector(a, b, 0, 2);
#endif
}

// Several independent groups hide the latency of the multiplier. Each further group has
// the next blocks of the same step or, if `stride` is not 0, the same blocks of the
// next step; the words of group g go to out + g * stride then. `low` promises counters
// below 2^32.
template <int groups, bool low = false>
LOWPREC_INLINE void philox_groups(uint64_t block, uint64_t seed, uint32_t step,
                                  uint32_t purpose, uint32_t* out, int64_t stride = 0) {
  Lanes c0[groups], c1[groups], c2[groups], c3[groups];
  Lanes ramp;
  for (int i = 0; i < kLanes; ++i) ramp[i] = i;
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) {
    const Lanes counter = ramp + (stride ? block : block + g * kLanes);
    c0[g] = counter;
    c1[g] = low ? Lanes{} : counter >> 32;
    c2[g] = ramp * 0 + (stride ? step + uint32_t(g) : step);
    c3[g] = ramp * 0 + purpose;
  }
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 8
    for (int g = 0; g < groups; ++g) {
      // Only low halves matter, so what the xors leave in the high ones is harmless.
      const Lanes p0 = multiply(c0[g], 0xD2511F53u), p1 = multiply(c2[g], 0xCD9E8D57u);
      c0[g] = exclusive_or(high_halves(p1), c1[g], Lanes{} + k0);
      c2[g] = exclusive_or(high_halves(p0), c3[g], Lanes{} + k1);
      c1[g] = p1;
      c3[g] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
#pragma GCC unroll 8
  for (int g = 0; g < groups; ++g) {
    const Lanes first = combine(c0[g], c1[g]), second = combine(c2[g], c3[g]);
    const Lanes words[2] = {interleave(first, second, 0), interleave(first, second, 1)};
    // Little-endian lanes: the words lie in memory in counter order.
    memcpy(out + g * (stride ? stride : 4 * kLanes), words, sizeof(words));
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
