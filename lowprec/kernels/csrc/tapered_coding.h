// Bit patterns of posits, and back: a regime, then what is in the carrier's bits too.
#pragma once
#include "rounding.h"
#include "table.h"

LOWPREC_BEGIN

// Posits have no precision; es stands in place of emin.
inline bool tapered(const Encoding& code) { return code.precision == 0; }

// Codes of posits.
template <class C>
LOWPREC_INLINE VBits<C> encode_posit(VBits<C> bits, const Encoding& code) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using L = Layout<C>;
  const Int es = Int(code.emin), width = Int(code.bits);
  const VBits<C> magnitude = bits & Bits(L::sign - 1);
  const VInt<C> regime =
      ((VInt<C>)(magnitude >> Bits(L::fraction)) - Int(C::bias)) >> es;
  const VInt<C> negative_regime = regime < Int(0), none = {};
  // What is no posit of this width has no meaning, but defined shifts.
  VInt<C> room = Int(width - 3) - (regime ^ negative_regime);
  room = vector_max<VInt<C>>(room, none - Int(1));
  const VBits<C> one = splat<VBits<C>>(Bits(1));
  const VBits<C> behind =
      (magnitude + L::hidden) & Bits((Bits(1) << (L::fraction + es)) - 1);
  const VBits<C> ones =
      Bits(Bits(1) << (width - 1)) - (one << (VBits<C>)(room + Int(1)));
  const VBits<C> zeros = one << (VBits<C>)vector_max<VInt<C>>(room, none);
  VBits<C> result = (negative_regime ? zeros : ones) +
                    (behind >> (VBits<C>)(Int(L::fraction + es) - room));
  result = (VInt<C>)bits < Int(0) ? Bits(Bits(1) << width) - result : result;
  result = magnitude == Bits(0) ? VBits<C>{} : result;
  return magnitude > L::infinity ? splat<VBits<C>>(Bits(code.nan)) : result;
}

// Values of codes.
template <class C>
LOWPREC_INLINE VBits<C> decode_posit(VBits<C> bits, const Encoding& code) {
  using Bits = typename C::Bits;
  using Int = typename C::Int;
  using L = Layout<C>;
  const Int es = Int(code.emin), width = Int(code.bits);
  const Bits nar = Bits(1) << (width - 1);
  const VInt<C> negative = (bits & nar) != Bits(0);
  const VBits<C> size = (negative ? Bits(2 * nar) - bits : bits) & Bits(2 * nar - 1);
  const VInt<C> ones = (size & Bits(nar >> 1)) != Bits(0);
  // The highest bit that is not one of the regime's: converted exactly, it is the
  // exponent. There is none behind the longest one.
  const VBits<C> rest = (size ^ (VBits<C>)ones) & Bits(nar - 1);
  const VBits<C> number =
      (VBits<C>)__builtin_convertvector((VInt<C>)rest, VFloat<C>);
  const VInt<C> none = {};
  const VInt<C> end = vector_max<VInt<C>>(
      (VInt<C>)(number >> Bits(L::fraction)) - Int(C::bias), none - Int(1));
  const VInt<C> regime = ones ? Int(width - 3) - end : end - Int(width - 2);
  const VBits<C> room = (VBits<C>)vector_max<VInt<C>>(end, none);
  const VBits<C> behind = size & ((splat<VBits<C>>(Bits(1)) << room) - Bits(1));
  const VBits<C> field = ((VBits<C>)regime << Bits(es)) + Bits(C::bias);
  VBits<C> result = (field << Bits(L::fraction)) +
                    (behind << (Bits(L::fraction + es) - room));
  result = size == Bits(0) ? VBits<C>{} : result;
  result |= (VBits<C>)negative & L::sign;
  return bits == nar ? splat<VBits<C>>(L::quiet_nan) : result;
}

LOWPREC_END
