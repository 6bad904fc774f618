// What a carrier (the IEEE type that holds emulated numbers) looks like in bits.
//
// Every translation unit that includes this header is compiled once per instruction
// set, so everything lives in a namespace of its own and nothing from the standard
// library's templates is used: the linker must never merge an AVX-512 copy of a
// function into the baseline build.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef LOWPREC_ISA
#define LOWPREC_ISA baseline
#endif
#define LOWPREC_BEGIN     \
  namespace lowprec {     \
  namespace LOWPREC_ISA { \
  namespace {
#define LOWPREC_END \
  }                 \
  }                 \
  }
#define LOWPREC_INLINE inline __attribute__((always_inline))
#define LOWPREC_LAMBDA __attribute__((always_inline))

LOWPREC_BEGIN

// The loops are written in GNU C vector types, whose operators act on every lane:
// comparisons give lanes of all ones or zeros, and `mask ? a : b` selects by lane.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct Binary32 {
  using Float = float;
  using Bits = uint32_t;
  using Int = int32_t;
  static constexpr int width = 32, precision = 24, bias = 127;
  static constexpr int lanes = kVectorBytes / 4;
};

struct Binary64 {
  using Float = double;
  using Bits = uint64_t;
  using Int = int64_t;
  static constexpr int width = 64, precision = 53, bias = 1023;
  static constexpr int lanes = kVectorBytes / 8;
};

template <class C>
struct Vector {
  typedef typename C::Bits Bits __attribute__((vector_size(kVectorBytes)));
  typedef typename C::Int Int __attribute__((vector_size(kVectorBytes)));
  typedef typename C::Float Float __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Words __attribute__((vector_size(4 * C::lanes)));
};
template <class C>
using VBits = typename Vector<C>::Bits;
template <class C>
using VInt = typename Vector<C>::Int;
template <class C>
using VFloat = typename Vector<C>::Float;

template <class V, class T>
LOWPREC_INLINE V load(const T* from) {
  V vector;
  memcpy(&vector, from, sizeof(V));
  return vector;
}

template <class V, class T>
LOWPREC_INLINE void store(T* to, V vector) {
  memcpy(to, &vector, sizeof(V));
}

// One random word per lane.
template <class C>
LOWPREC_INLINE VBits<C> load_words(const uint32_t* words) {
  return __builtin_convertvector(load<typename Vector<C>::Words>(words), VBits<C>);
}

template <class C>
struct Layout {
  using Bits = typename C::Bits;
  static constexpr int fraction = C::precision - 1;
  static constexpr Bits hidden = Bits(1) << fraction;
  static constexpr Bits infinity = Bits(2 * C::bias + 1) << fraction;
  static constexpr Bits quiet_nan = infinity | (hidden >> 1);
  static constexpr Bits sign = Bits(1) << (C::width - 1);
};

template <class To, class From>
LOWPREC_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the width");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

template <class T>
LOWPREC_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

template <class T>
LOWPREC_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}

LOWPREC_END
