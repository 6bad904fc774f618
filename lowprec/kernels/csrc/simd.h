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

// Whether any lane has other bits.
template <class C>
LOWPREC_INLINE bool any_different(VFloat<C> a, VFloat<C> b) {
#if defined(__AVX512F__)
  if (C::width == 32) return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b) != 0;
  return _mm512_cmpneq_epi64_mask((__m512i)a, (__m512i)b) != 0;
#else
  return any<VInt<C> >((VInt<C>)a != (VInt<C>)b);
#endif
}

// Whether every lane of `a` is greater than that of `b`, so that none is NaN.
template <class C>
LOWPREC_INLINE bool all_greater(VFloat<C> a, VFloat<C> b) {
#if defined(__AVX512F__)
  if constexpr (C::width == 32)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NGT_UQ) == 0;
  else
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_NGT_UQ) == 0;
#else
  return !any<VInt<C>>(~(a > b));
#endif
}

// Whether any lane of `a` differs from that of `b`, or is NaN.
template <class C>
LOWPREC_INLINE bool any_unequal(VFloat<C> a, VFloat<C> b) {
#if defined(__AVX512F__)
  if constexpr (C::width == 32)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ) != 0;
  else
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_NEQ_UQ) != 0;
#else
  return any<VInt<C> >(a != b);
#endif
}

// The larger of two lanes whose sign bits are clear.
template <class C>
LOWPREC_INLINE VBits<C> larger_magnitude(VBits<C> a, VBits<C> b) {
#if defined(__AVX512F__)
  return a > b ? a : b;
#elif defined(__AVX2__)
  if (C::width == 32) return (VBits<C>)_mm256_max_epi32((__m256i)a, (__m256i)b);
#elif defined(__SSE4_1__)
  if (C::width == 32) return (VBits<C>)_mm_max_epi32((__m128i)a, (__m128i)b);
#endif
  return (VInt<C>)a > (VInt<C>)b ? a : b;
}

// The same of numbers that are not NaN.
template <class C>
LOWPREC_INLINE VBits<C> larger_number(VBits<C> a, VBits<C> b) {
#if defined(__AVX512F__)
#elif defined(__AVX2__)
  if (C::width == 64) return (VBits<C>)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
  if (C::width == 64) return (VBits<C>)_mm_max_pd((__m128d)a, (__m128d)b);
#endif
  return larger_magnitude<C>(a, b);
}

// a * b + c, where the product is exact: rounded once.
template <class C>
LOWPREC_INLINE VFloat<C> multiply_add(VFloat<C> a, VFloat<C> b, VFloat<C> c) {
#if defined(__AVX512F__)
  if constexpr (C::width == 32)
    return (VFloat<C>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else
    return (VFloat<C>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  if constexpr (C::width == 32)
    return (VFloat<C>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else
    return (VFloat<C>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// a * b + c, rounded once if `fused`, else after each operation.
template <class C>
LOWPREC_INLINE VFloat<C> multiply_add(VFloat<C> a, VFloat<C> b, VFloat<C> c,
                                      bool fused) {
  if (!fused) return a * b + c;
#if defined(__FMA__)
  return multiply_add<C>(a, b, c);
#else
  for (int lane = 0; lane < C::lanes; ++lane)
    c[lane] = C::width == 32
                  ? __builtin_fmaf(float(a[lane]), float(b[lane]), float(c[lane]))
                  : __builtin_fma(a[lane], b[lane], c[lane]);
  return c;
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

// As many numbers as a vector of float64 has lanes.
LOWPREC_INLINE VFloat<Binary64> load_wide(const double* from) {
  return load<VFloat<Binary64>>(from);
}

LOWPREC_INLINE VFloat<Binary64> load_wide(const float* from) {
#if defined(__AVX512F__)
  return (VFloat<Binary64>)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif defined(__AVX2__)
  return (VFloat<Binary64>)_mm256_cvtps_pd(_mm_loadu_ps(from));
#else
  typedef float Few __attribute__((vector_size(4 * Binary64::lanes)));
  return __builtin_convertvector(load<Few>(from), VFloat<Binary64>);
#endif
}

// x where it is neither below `low` nor above `high`, zeros as they are, or NaN.
template <class C>
LOWPREC_INLINE VFloat<C> within(VFloat<C> x, VFloat<C> low, VFloat<C> high) {
#if defined(__AVX512F__)
  // Of unordered or equal operands these instructions give the second.
  if constexpr (C::width == 32)
    return (VFloat<C>)_mm512_min_ps((__m512)high,
                                    _mm512_max_ps((__m512)low, (__m512)x));
  else
    return (VFloat<C>)_mm512_min_pd((__m512d)high,
                                    _mm512_max_pd((__m512d)low, (__m512d)x));
#else
  x = x < low ? low : x;
  return x > high ? high : x;
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

// The largest integers that are not above x.
template <class C>
LOWPREC_INLINE VFloat<C> floor_of(VFloat<C> x) {
#if defined(__AVX512F__)
  if constexpr (C::width == 32)
    return (VFloat<C>)_mm512_roundscale_ps((__m512)x, 1);
  else
    return (VFloat<C>)_mm512_roundscale_pd((__m512d)x, 1);
#elif defined(__AVX2__)
  if constexpr (C::width == 32)
    return (VFloat<C>)_mm256_floor_ps((__m256)x);
  else
    return (VFloat<C>)_mm256_floor_pd((__m256d)x);
#else
  for (int lane = 0; lane < C::lanes; ++lane) x[lane] = __builtin_floor(x[lane]);
  return x;
#endif
}

// from[index] for every lane.
template <class C>
LOWPREC_INLINE VFloat<C> gather(const typename C::Float* from, VInt<C> index) {
#if defined(__AVX512F__)
  if constexpr (C::width == 32)
    return (VFloat<C>)_mm512_i32gather_ps((__m512i)index, from, 4);
  else
    return (VFloat<C>)_mm512_i64gather_pd((__m512i)index, from, 8);
#elif defined(__AVX2__)
  if constexpr (C::width == 32)
    return (VFloat<C>)_mm256_i32gather_ps(from, (__m256i)index, 4);
  else
    return (VFloat<C>)_mm256_i64gather_pd(from, (__m256i)index, 8);
#else
  VFloat<C> result;
  for (int lane = 0; lane < C::lanes; ++lane) result[lane] = from[index[lane]];
  return result;
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
