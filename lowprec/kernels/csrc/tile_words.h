// The random words of the additions in a tile: a row of it for some terms at a time.
//
// Of the two counters that a round of Philox multiplies, one depends on the output only
// and the other on the term only, for two rounds: c0 and c2 before the first, c2 and c0
// before the second. Those rounds are done once per row and once per term; what they
// leave is joined by exclusive or.
#pragma once
#include "code.h"
#include "philox.h"

LOWPREC_BEGIN

constexpr int kRowWords = 4 * kLanes;  // words of one vector of counters: a tile's row
constexpr int kRowTerms = kLanes;      // terms whose words are made together
constexpr int kWordStride = kRowWords + 16;  // from the words of a term to the next

// A row that does not begin at a whole counter needs one counter more.
struct RowWords {
  Lanes c0, c1, c2;  // after two rounds
  uint64_t last[3];  // the same of the counter behind them
  int64_t skip;      // words of the first counter that belong to outputs before
  alignas(64) uint32_t buffer[kRowTerms * kWordStride];

  // Where the words of the row begin, for one of the terms drawn last.
  const uint32_t* of_term(int term) const { return buffer + skip + term * kWordStride; }
};

// For terms with consecutive numbers; all counters have the same high half.
class TermWords {
 public:
  static constexpr int64_t kCapacity = 128;

  TermWords(uint64_t seed, uint64_t first_output)
      : high_(uint32_t(first_output >> 34)) {
    for (int round = 0; round < kRounds; ++round) {
      const RoundKey key(seed, round);
      low_keys_[round] = Lanes{} + key.low;
      high_keys_[round] = Lanes{} + key.high;
    }
  }

  void set_terms(uint32_t first, int64_t count) {
    const uint32_t k0 = uint32_t(low_keys_[0][0]), k1 = uint32_t(low_keys_[1][0]);
    for (int64_t t = 0; t < count; ++t) {
      const uint64_t p1 = uint64_t(first + uint32_t(t)) * kFactor1;
      const uint64_t p0 = uint64_t(uint32_t(p1 >> 32) ^ high_ ^ k0) * kFactor0;
      c0_[t] = uint32_t(p1) ^ k1;
      c2_[t] = uint32_t(p0 >> 32) ^ uint32_t(high_keys_[1][0]);
      c3_[t] = uint32_t(p0);
    }
  }

  void begin_row(uint64_t first_output, RowWords* row) const {
    const uint64_t block = first_output >> 2;
    row->skip = int64_t(first_output & 3);
    const Lanes p0 = multiply(counter_ramp() + block, kFactor0);
    const Lanes p1 =
        multiply((p0 >> 32) ^ uint64_t(kPurposeAdd) ^ high_keys_[0], kFactor1);
    row->c0 = p1 >> 32;
    row->c1 = p1;
    row->c2 = p0;
    const uint64_t last = uint64_t(uint32_t(block) + uint32_t(kLanes)) * kFactor0;
    const uint64_t factor = (last >> 32) ^ kPurposeAdd ^ uint32_t(high_keys_[0][0]);
    row->last[1] = factor * kFactor1;
    row->last[0] = row->last[1] >> 32;
    row->last[2] = last;
  }

  // The words of terms t .. t + kRowTerms - 1.
  LOWPREC_INLINE void draw(int64_t t, RowWords* row) const {
    for (int part = 0; part < kRowTerms; part += kGroups)
      draw_part(*row, t + part, row->buffer + part * kWordStride);
    if (row->skip) draw_last(t, row);
  }

 private:
  LOWPREC_INLINE void draw_part(const RowWords& row, int64_t t, uint32_t* out) const {
    CounterLanes counters[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g)
      counters[g] = {row.c0 ^ c0_[t + g], row.c1, row.c2 ^ c2_[t + g],
                     Lanes{} + c3_[t + g]};
#pragma GCC unroll 10
    for (int round = 2; round < kRounds; ++round)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        if (round < kRounds - 1)
          counters[g].round(low_keys_[round], high_keys_[round]);
        else
          counters[g].finish(low_keys_[round], high_keys_[round],
                             out + g * kWordStride);
      }
  }

  // The lanes are terms here.
  void draw_last(int64_t t, RowWords* row) const {
    CounterLanes counter = {row->last[0] ^ load<Lanes>(c0_ + t), Lanes{} + row->last[1],
                            row->last[2] ^ load<Lanes>(c2_ + t), load<Lanes>(c3_ + t)};
    for (int round = 2; round < kRounds - 1; ++round)
      counter.round(low_keys_[round], high_keys_[round]);
    uint32_t words[kRowTerms][4];
    counter.finish(low_keys_[kRounds - 1], high_keys_[kRounds - 1], words[0]);
    for (int lane = 0; lane < kLanes; ++lane)
      memcpy(row->buffer + lane * kWordStride + kRowWords, words[counter_of_lane(lane)],
             sizeof(words[0]));
  }

  Lanes low_keys_[kRounds], high_keys_[kRounds];
  uint32_t high_;
  // Behind the last term, anything: its words are not used.
  alignas(64) uint64_t c0_[kCapacity + kRowTerms];
  alignas(64) uint64_t c2_[kCapacity + kRowTerms];
  alignas(64) uint64_t c3_[kCapacity + kRowTerms];
};

LOWPREC_END
