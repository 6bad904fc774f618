// The few vector operations that GNU C's vector types cannot say, per instruction set.
#pragma once
#include "carrier.h"

LOWPREC_BEGIN

// Writes a vector past the caches; `to` is aligned to it.
template <class V, class T>
LOWPREC_INLINE void store_streaming(T* to, V vector) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)to, (__m512i)vector);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)to, (__m256i)vector);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i*)to, (__m128i)vector);
#else
  store(to, vector);
#endif
}

// Makes streaming stores visible to other threads before what follows.
LOWPREC_INLINE void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Whether any lane of a comparison holds.
template <class V>
LOWPREC_INLINE bool any(V lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)lanes, (__m256i)lanes);
#elif defined(__SSE4_1__)
  return !_mm_testz_si128((__m128i)lanes, (__m128i)lanes);
#else
  bool found = false;
  for (int i = 0; i < int(sizeof(V) / sizeof(lanes[0])); ++i) found |= lanes[i] != 0;
  return found;
#endif
}

// Whether any lane of `a` is greater than that of `b`, both with clear sign bits.
template <class C>
LOWPREC_INLINE bool any_greater(VBits<C> a, VBits<C> b) {
#if defined(__AVX512F__)
  if (C::width == 32) return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b) != 0;
  return _mm512_cmpgt_epi64_mask((__m512i)a, (__m512i)b) != 0;
#else
  return any<VInt<C> >((VInt<C>)a > (VInt<C>)b);
#endif
}

// The larger of two lanes that are zero or positive finite or infinite numbers.
template <class C>
LOWPREC_INLINE VBits<C> larger_number(VBits<C> a, VBits<C> b) {
#if defined(__AVX512F__)
  return a > b ? a : b;
#elif defined(__AVX2__)
  if (C::width == 32) return (VBits<C>)_mm256_max_epi32((__m256i)a, (__m256i)b);
  return (VBits<C>)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE4_1__)
  if (C::width == 32) return (VBits<C>)_mm_max_epi32((__m128i)a, (__m128i)b);
  return (VBits<C>)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return (VInt<C>)a > (VInt<C>)b ? a : b;
#endif
}

// `magnitude` with the sign bit of `signs`.
template <class C>
LOWPREC_INLINE VBits<C> with_sign(VBits<C> magnitude, VBits<C> signs) {
  constexpr typename C::Bits sign = typename C::Bits(1) << (C::width - 1);
#if defined(__AVX512F__)
  const VBits<C> mask = VBits<C>{} + sign;
  return (VBits<C>)_mm512_ternarylogic_epi32((__m512i)mask, (__m512i)signs,
                                             (__m512i)magnitude, 0xCA);
#else
  return (magnitude & ~sign) | (signs & sign);
#endif
}

// ~(a & b), for which compilers need two instructions.
LOWPREC_INLINE VBits<Binary32> not_both(VBits<Binary32> a, VBits<Binary32> b) {
#if defined(__AVX512F__)
  return (VBits<Binary32>)_mm512_ternarylogic_epi32((__m512i)a, (__m512i)b, (__m512i)b,
                                                    0x3F);
#else
  return ~(a & b);
#endif
}

// Lanes where a > b as unsigned integers.
LOWPREC_INLINE VInt<Binary32> unsigned_greater(VBits<Binary32> a, VBits<Binary32> b) {
#if defined(__AVX512F__)
  return (VInt<Binary32>)(a > b);
#else
  const uint32_t sign = 0x80000000u;
  return (VInt<Binary32>)(a ^ sign) > (VInt<Binary32>)(b ^ sign);
#endif
}

// The integer parts of numbers in [0, 2^32), in any rounding direction.
LOWPREC_INLINE VBits<Binary32> integer_part(VFloat<Binary32> x) {
#if defined(__AVX512F__)
  return (VBits<Binary32>)_mm512_cvttps_epu32((__m512)x);
#else
  // Conversions are signed, so in two parts; all of it is exact.
  const VInt<Binary32> high = __builtin_convertvector(x * 0x1p-16f, VInt<Binary32>);
  const VFloat<Binary32> rest =
      x - __builtin_convertvector(high, VFloat<Binary32>) * 0x1p16f;
  const VInt<Binary32> low = __builtin_convertvector(rest, VInt<Binary32>);
  return ((VBits<Binary32>)high << 16) + (VBits<Binary32>)low;
#endif
}

LOWPREC_END
