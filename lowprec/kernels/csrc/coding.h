// Bit patterns of a format's values, and back: integer operations and exact scalings.
//
// A code is sign, exponent field and stored significand; as an integer the code of
// |x| is (max(e, emin) - emin) 2^(p-1) + |x| / q with the quantum q.
#pragma once
#include "loops.h"
#include "rounding.h"
#include "table.h"
#include "tapered_coding.h"

LOWPREC_BEGIN

inline bool valid(const Encoding& c) {
  if (tapered(c)) return c.bits >= 2 && c.bits <= 32 && c.emin >= 0 && c.emin <= 4;
  return c.precision >= 1 && c.precision <= 63 && c.bits >= 1 && c.bits <= 64 &&
         c.emin >= -(1 << 21) && c.emin <= 1 << 21;
}

// Codes of values of the format; `code` is `encoding` in the carrier's integers.
template <class C>
LOWPREC_INLINE VBits<C> encode_bits(VBits<C> bits, const Encoding& code) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using L = Layout<C>;
  const VBits<C> magnitude = bits & Bits(L::sign - 1);
  const VInt<C> field = (VInt<C>)(magnitude >> Bits(L::fraction));
  const VInt<C> subnormal = field == Int(0);
  const VBits<C> significand =
      (magnitude & Bits(L::hidden - 1)) | (~(VBits<C>)subnormal & L::hidden);
  const VInt<C> lsb = field - subnormal;
  const VInt<C> exponent = subnormal ? subnormal_exponent<C>(magnitude) : lsb;
  const Int lowest = Int(code.emin + C::bias);
  const VInt<C> binade = vector_max<VInt<C>>(exponent, splat<VInt<C>>(lowest));
  const VInt<C> shift = binade - lsb + Int(C::precision - code.precision);
  const VInt<C> last = splat<VInt<C>>(Int(C::width - 1)), none = {};
  const VBits<C> right =
      (VBits<C>)vector_min<VInt<C>>(vector_max<VInt<C>>(shift, none), last);
  const VBits<C> left =
      (VBits<C>)vector_min<VInt<C>>(vector_max<VInt<C>>(-shift, none), last);
  VBits<C> result = ((VBits<C>)(binade - lowest) << Bits(code.precision - 1)) +
                    ((significand >> right) << left);
  result = magnitude == Bits(0) ? VBits<C>{} : result;
  result = magnitude == L::infinity ? splat<VBits<C>>(Bits(code.infinity)) : result;
  const Bits sign = code.is_signed ? Bits(1) << (code.bits - 1) : Bits(0);
  result |= (VBits<C>)((VInt<C>)bits < Int(0)) & sign;
  return magnitude > L::infinity ? splat<VBits<C>>(Bits(code.nan)) : result;
}

// 2^exponent for exponents of normal numbers.
template <class C>
LOWPREC_INLINE VFloat<C> power(VInt<C> exponent) {
  using Int = typename C::Int;
  return (VFloat<C>)((exponent + Int(C::bias)) << Int(C::precision - 1));
}

// Values of codes; NaN for those that denote none.
template <class C>
LOWPREC_INLINE VBits<C> decode_bits(VBits<C> bits, const Encoding& code) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using L = Layout<C>;
  const Bits sign = code.is_signed ? Bits(1) << (code.bits - 1) : Bits(0);
  const VInt<C> negative = (bits & sign) != Bits(0);
  const VBits<C> magnitude = bits & ~sign;
  const Bits hidden = Bits(1) << (code.precision - 1);
  const VBits<C> field = magnitude >> Bits(code.precision - 1);
  const VInt<C> subnormal = field == Bits(0);
  const VBits<C> stored = magnitude & Bits(hidden - 1);
  const VBits<C> significand = stored | (~(VBits<C>)subnormal & hidden);
  // Beyond the largest finite value there is no number to scale.
  const VInt<C> special = (VInt<C>)(magnitude > splat<VBits<C>>(Bits(code.largest)));
  VInt<C> exponent = (VInt<C>)field - subnormal + Int(code.emin - code.precision);
  exponent = special ? VInt<C>{} : exponent;
  // Two exact scalings: one factor alone may leave the carrier's range.
  const VInt<C> half = exponent >> Int(1);
  const VFloat<C> value = __builtin_convertvector((VInt<C>)significand, VFloat<C>) *
                          power<C>(half) * power<C>(exponent - half);
  VInt<C> undefined = special;
  if (code.infinity >= 0) undefined &= magnitude != Bits(code.infinity);
  if (!code.signed_zero) undefined |= negative & (magnitude == Bits(0));
  if (!code.subnormals) undefined |= subnormal & (stored != Bits(0));
  VBits<C> result = special ? splat<VBits<C>>(L::infinity) : (VBits<C>)value;
  result |= (VBits<C>)negative & L::sign;
  return undefined ? splat<VBits<C>>(L::quiet_nan) : result;
}

// Codes of the elements of a carrier's vector.
template <class C, class T>
struct CodeVector {
  typedef T Type __attribute__((vector_size(sizeof(T) * C::lanes)));
};

template <class T>
struct Doubled {
  using Type = uint16_t;
};
template <>
struct Doubled<uint16_t> {
  using Type = uint32_t;
};

// The codes in the lanes of a carrier; compilers know how to double their size.
template <class C, class T>
LOWPREC_INLINE VBits<C> in_lanes(typename CodeVector<C, T>::Type codes) {
  if constexpr (2 * sizeof(T) < sizeof(typename C::Bits)) {
    using Twice = typename Doubled<T>::Type;
    using Wider = typename CodeVector<C, Twice>::Type;
    return in_lanes<C, Twice>(__builtin_convertvector(codes, Wider));
  } else {
    return __builtin_convertvector(codes, VBits<C>);
  }
}

template <class C, class T>
void encode_part(const typename C::Bits* x, T* out, int64_t count,
                 const Encoding& shared) {
  using Codes = typename CodeVector<C, T>::Type;
  const Encoding code = shared;
  const bool posits = tapered(code);
  each_vector<VBits<C>, Codes>(
      x, out, count, [&](VBits<C> bits, int64_t) LOWPREC_LAMBDA {
        return __builtin_convertvector(
            posits ? encode_posit<C>(bits, code) : encode_bits<C>(bits, code), Codes);
      });
}

template <class C, class T>
void decode_part(const T* codes, typename C::Bits* out, int64_t count,
                 const Encoding& shared) {
  using Codes = typename CodeVector<C, T>::Type;
  const Encoding code = shared;
  const bool posits = tapered(code);
  each_vector<Codes, VBits<C>>(codes, out, count,
                               [&](Codes some, int64_t) LOWPREC_LAMBDA {
                                 const VBits<C> bits = in_lanes<C, T>(some);
                                 return posits ? decode_posit<C>(bits, code)
                                               : decode_bits<C>(bits, code);
                               });
}

// Unsigned integers of each size; codes are never negative, or fill 64 bits.
template <class C, class T>
Status code_array(const Coding& task) {
  using Bits = typename C::Bits;
  for_parts(task.count, task.threads, kNearest, [&](int64_t i, int64_t count) {
    if (task.decoding) {
      decode_part<C>((const T*)task.from + i, (Bits*)task.to + i, count, task.encoding);
    } else {
      encode_part<C>((const Bits*)task.from + i, (T*)task.to + i, count, task.encoding);
    }
  });
  return kOk;
}

template <class C>
Status code_array_of(const Coding& task) {
  // Exponents of a posit's bits tell its regime, so that it is converted exactly.
  const int64_t widest = tapered(task.encoding) ? C::precision : C::width;
  if (!valid(task.encoding) || task.encoding.bits > widest ||
      (task.decoding && task.encoding.precision > C::precision)) {
    return kBadArgument;
  }
  switch (task.code_bytes) {
    case 1:
      return code_array<C, uint8_t>(task);
    case 2:
      return code_array<C, uint16_t>(task);
    case 4:
      return code_array<C, uint32_t>(task);
    case 8:
      return code_array<C, uint64_t>(task);
    default:
      return kBadArgument;
  }
}

inline Status coding(const Coding& task) {
  return task.width == 32 ? code_array_of<Binary32>(task)
                          : code_array_of<Binary64>(task);
}

LOWPREC_END
