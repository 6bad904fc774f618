// Cheaper loops for common roundings. Each states when it equals round_bits.
#pragma once
#include "rounding.h"

LOWPREC_BEGIN

template <class C>
using FastPart = void (*)(const typename C::Bits*, typename C::Bits*, int64_t,
                          const Plan<C>&);
template <class C>
using FastWords = void (*)(const typename C::Bits*, typename C::Bits*, int64_t,
                           const Plan<C>&, const uint32_t*);

template <class C>
FastPart<C> fast_rounding(const Code&, const Plan<C>&) {
  return nullptr;
}

template <class C>
FastWords<C> fast_stochastic(const Code&, const Plan<C>&) {
  return nullptr;
}

LOWPREC_END
