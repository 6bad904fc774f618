// Loops over arrays, a vector at a time.
#pragma once
#include "carrier.h"

LOWPREC_BEGIN

// Applies `function` to every vector of an array; input and output may be the same.
template <class C, class F>
LOWPREC_INLINE void for_vectors(const typename C::Bits* x, typename C::Bits* out,
                                int64_t count, F function) {
  int64_t i = 0;
  for (; i + C::lanes <= count; i += C::lanes)
    store(out + i, function(load<VBits<C>>(x + i), i));
  if (i == count) return;
  typename C::Bits rest[C::lanes] = {0};
  const size_t bytes = size_t(count - i) * sizeof(rest[0]);
  memcpy(rest, x + i, bytes);
  store(rest, function(load<VBits<C>>(rest), i));
  memcpy(out + i, rest, bytes);
}

LOWPREC_END
