// From which fraction on a stochastic rounding goes up, as an exact number.
#pragma once
#include "code.h"

LOWPREC_BEGIN

// Up iff nu >= fraction, or nu > fraction if `strict` (stochastic_threshold in
// deciding.py).
struct Threshold {
  struct Bound {
    double fraction;
    bool strict;
  };
  int random_bits;
  int64_t variant;

  explicit Threshold(const Code& code)
      : random_bits(int(code.random_bits)), variant(code.variant) {}

  double unit() const {
    const int bits = random_bits + (variant == kA ? 0 : 1);
    return bit_cast<double>(uint64_t(1023 - bits) << 52);
  }

  Bound of(uint32_t word) const {
    const int64_t missing =
        (int64_t(1) << random_bits) - int64_t(word >> (32 - random_bits));
    if (variant == kA) return {double(missing) * unit(), false};
    return {double(2 * missing - 1) * unit(), variant == kC && missing % 2 != 0};
  }
};

LOWPREC_END
