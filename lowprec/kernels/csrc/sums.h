// The sums of one block of outputs, in the order of their definition.
#pragma once
#include "addition.h"
#include "operands.h"
#include "philox.h"

LOWPREC_BEGIN

// How this call rounds: chosen once, used by every block.
struct Recipe {
  RowRounding sum, product, within;
  RowFunction product_round;  // null: products stay exact
  RowFunction add;            // total + term, rounded as `within` says
  RowFunction combine;        // total + partial sum: neither has an error term
  RowFunction leaf;           // pairwise: rounding of a term to the accumulator
  bool wide;                  // products need an error term
  bool add_words, combine_words, product_words;

  Recipe(const Matmul& task, const Plan64& sum_plan, const Plan64& product_plan,
         const Plan64& within_plan, bool wide_products, bool huge)
      : sum(task.accumulate, sum_plan),
        product(task.product, product_plan),
        within(task.within, within_plan),
        product_round(nullptr),
        wide(wide_products),
        add_words(stochastic(task.within)),
        combine_words(stochastic(task.accumulate)),
        product_words(!task.exact_products && stochastic(task.product)) {
    if (!task.exact_products)
      product_round =
          select_rows(task.product, product_plan, wide ? kPairs : kHuge).round;
    // A block sum may have saturated at the largest number of a wide format.
    const Terms single = huge || task.within.emax > 1000 ? kHuge : kSmall;
    const bool pairs = wide && task.exact_products;
    const RowFunctions rows =
        select_rows(task.within, within_plan, pairs ? kPairs : single);
    add = rows.add;
    leaf = rows.round;
    combine = select_rows(task.accumulate, sum_plan, single).add;
  }
};

template <class T>
class Sums {
 public:
  Sums(const Matmul& task, const Recipe& recipe, const Block& block)
      : task_(task), recipe_(recipe), block_(block) {
    outputs_ = block.rows * block.columns;
    padded_ = (outputs_ + kPadding - 1) / kPadding * kPadding;
    // Elements of the padding take part in vector operations: they must be numbers.
    for (int64_t i = 0; i < padded_; ++i) term_[i] = error_[i] = 0.0;
    for (int64_t i = 0; i < padded_; ++i) once_[i] = 0;
    for (int64_t i = 0; i < kGroups * kWordStride && recipe.add_words; ++i)
      add_words_.buffer[i] = 0;
    for (int64_t i = 0; i < kGroups * kWordStride && recipe.product_words; ++i)
      product_words_.buffer[i] = 0;
    for (int64_t i = 0; i < outputs_; ++i) {
      row_of_[i] = int32_t(i / block.columns);
      column_of_[i] = int32_t(i % block.columns);
    }
  }

  // `total` holds +0 for every output and receives the sums.
  void run(double* total) {
    if (task_.order == kPairwise) {
      pairwise(total);
    } else if (task_.order == kBlocked) {
      blocked(total);
    } else if (task_.order == kKahan) {
      kahan(total);
    } else {
      for (int64_t k = 0; k < task_.terms; ++k) add_term(total, k);
    }
  }

 private:
  static constexpr int64_t kWordStride = kOutputs + kWordSlack;
  struct Words {
    alignas(64) uint32_t buffer[kGroups * kWordStride];
    const uint32_t* start;
  };

  // term_ (+ error_) <- the products with number k of every output, rounded if asked.
  Row term(int64_t k) {
    if (k % kTerms == 0) pack_terms(k);
    const double* a = a_ + k % kTerms * block_.rows;
    const double* b = b_ + k % kTerms * block_.columns;
    if (block_.columns == 1) {
      for (int64_t i = 0; i < outputs_; ++i) term_[i] = a[i] * b[0];
    } else if (block_.columns < 8) {
      for (int64_t i = 0; i < outputs_; ++i)
        term_[i] = a[row_of_[i]] * b[column_of_[i]];
    } else {
      double* out = term_;
      for (int64_t r = 0; r < block_.rows; ++r, out += block_.columns)
        for (int64_t c = 0; c < block_.columns; ++c) out[c] = a[r] * b[c];
    }
    if (recipe_.wide) errors(a, b);
    if (recipe_.product_round == nullptr)
      return {term_, recipe_.wide ? error_ : nullptr, nullptr, padded_};
    const uint32_t* words =
        recipe_.product_words ? draw(product_words_, k, kPurposeProduct) : nullptr;
    recipe_.product_round(term_, {term_, error_, words, padded_}, recipe_.product);
    return {term_, nullptr, nullptr, padded_};
  }

  void errors(const double* a, const double* b) {
    for (int64_t i = 0; i < outputs_; ++i) {
      const double error = __builtin_fma(a[row_of_[i]], b[column_of_[i]], -term_[i]);
      error_[i] = __builtin_isfinite(term_[i]) ? error : 0.0;
    }
  }

  void pack_terms(int64_t k) {
    const int64_t count = smaller(kTerms, task_.terms - k);
    const T* a = (const T*)task_.a + block_.batch * task_.a_batch +
                 block_.row * task_.a_row + k * task_.a_term;
    const T* b = (const T*)task_.b + block_.batch * task_.b_batch +
                 block_.column * task_.b_column + k * task_.b_term;
    pack(a_, a, count, task_.a_term, block_.rows, task_.a_row, block_.rows);
    pack(b_, b, count, task_.b_term, block_.columns, task_.b_column, block_.columns);
  }

  // The random words of every output for one rounding of term k; those of kGroups terms
  // are drawn together.
  const uint32_t* draw(Words& words, int64_t k, uint32_t purpose) {
    if (k % kGroups == 0) {
      const uint32_t step = uint32_t(k);
      if (block_.columns == task_.columns) {  // outputs are numbered without gaps
        const uint64_t first = task_.offset + uint64_t(first_output(task_, block_, 0));
        words.start = philox_steps(first, outputs_, task_.seed, step, purpose,
                                   words.buffer, kWordStride);
      } else {
        for (int64_t r = 0; r < block_.rows; ++r) draw_row(words, r, step, purpose);
        words.start = words.buffer;
      }
    }
    return words.start + k % kGroups * kWordStride;
  }

  void draw_row(Words& words, int64_t row, uint32_t step, uint32_t purpose) {
    constexpr int64_t stride = kColumns + kWordSlack;
    alignas(64) uint32_t scratch[kGroups * stride];
    const uint64_t first = task_.offset + uint64_t(first_output(task_, block_, row));
    const uint32_t* drawn =
        philox_steps(first, block_.columns, task_.seed, step, purpose, scratch, stride);
    for (int g = 0; g < kGroups; ++g)
      memcpy(words.buffer + g * kWordStride + row * block_.columns, drawn + g * stride,
             block_.columns * sizeof(uint32_t));
  }

  // The random words of every output for one rounding of one step.
  const uint32_t* draw_once(int64_t step, uint32_t purpose) {
    for (int64_t r = 0; r < block_.rows; ++r) {
      alignas(64) uint32_t scratch[kColumns + kWordSlack];
      const uint64_t first = task_.offset + uint64_t(first_output(task_, block_, r));
      const uint32_t* words = philox_words(first, block_.columns, task_.seed,
                                           uint32_t(step), purpose, scratch);
      memcpy(once_ + r * block_.columns, words, block_.columns * sizeof(uint32_t));
    }
    return once_;
  }

  void add_term(double* total, int64_t k) {
    Row row = term(k);
    if (recipe_.add_words) row.words = draw(add_words_, k, kPurposeAdd);
    recipe_.add(total, row, recipe_.within);
  }

  void combine(double* total, const double* partial, int64_t step,
               uint32_t purpose = kPurposeCombine) {
    const uint32_t* words = recipe_.combine_words ? draw_once(step, purpose) : nullptr;
    recipe_.combine(total, {partial, nullptr, words, padded_}, recipe_.sum);
  }

  void blocked(double* total) {
    alignas(64) double partial[kOutputs];
    const int64_t size = task_.block_size;
    for (int64_t k = 0, number = 0; k < task_.terms; ++number) {
      for (int64_t i = 0; i < padded_; ++i) partial[i] = 0.0;
      // Not first + size, which a huge block size would overflow.
      const int64_t end = task_.terms - k < size ? task_.terms : k + size;
      for (; k < end; ++k) add_term(partial, k);
      combine(total, partial, number);
    }
  }

  // y = fl(term - c), t = fl(total + y), c = fl(fl(t - total) - y), total = t. Here
  // `less` holds -c, and minus what the next line subtracts.
  void kahan(double* total) {
    alignas(64) double less[kOutputs], y[kOutputs], after[kOutputs];
    for (int64_t i = 0; i < padded_; ++i) less[i] = -0.0;
    for (int64_t k = 0; k < task_.terms; ++k) {
      Row row = term(k);
      if (recipe_.add_words) row.words = draw_once(k, kPurposeKahanTerm);
      copy(y, less);
      recipe_.add(y, row, recipe_.within);
      copy(after, total);
      combine(after, y, k, kPurposeAdd);
      for (int64_t i = 0; i < padded_; ++i) less[i] = -total[i];
      copy(total, after);
      combine(after, less, k, kPurposeKahanDifference);
      for (int64_t i = 0; i < padded_; ++i) less[i] = -y[i];
      combine(after, less, k, kPurposeKahanCorrection);
      for (int64_t i = 0; i < padded_; ++i) less[i] = -after[i];
    }
  }

  // Level by level neighbours are added and an odd last one passes through; done in one
  // pass over the terms, like a binary counter: nodes_[l] is a finished node of level l
  // that waits for its right neighbour.
  void pairwise(double* total) {
    static constexpr int kLevels = 33;  // steps are 32-bit numbers
    alignas(64) double nodes[kLevels][kOutputs];
    int64_t first_step[kLevels + 1];  // number of the first addition into level l
    first_step[0] = first_step[1] = 0;
    for (int l = 1; l < kLevels; ++l)
      first_step[l + 1] = first_step[l] + (nodes_of_level(l - 1) >> 1);

    for (int64_t k = 0; k < task_.terms; ++k) {
      Row row = term(k);
      if (recipe_.add_words) row.words = draw(add_words_, k, kPurposeAdd);
      recipe_.leaf(total, row, recipe_.sum);
      int level = 0;
      for (int64_t node = k; node & 1; node >>= 1, ++level) {
        combine(nodes[level], total, first_step[level + 1] + (node >> 1));
        copy(total, nodes[level]);
      }
      copy(nodes[level], total);
    }
    // `total` is now carried up as the last, unfinished node of its level, if any.
    bool carried = false;
    for (int level = 0; level < kLevels; ++level) {
      if (!(task_.terms >> level & 1)) continue;
      if (carried) {
        const int64_t parent = (nodes_of_level(level) - 2) >> 1;
        combine(nodes[level], total, first_step[level + 1] + parent);
      }
      copy(total, nodes[level]);
      carried = true;
    }
  }

  int64_t nodes_of_level(int level) const {
    return (task_.terms + (int64_t(1) << level) - 1) >> level;
  }

  void copy(double* to, const double* from) const {
    memcpy(to, from, padded_ * sizeof(double));
  }

  const Matmul& task_;
  const Recipe& recipe_;
  const Block& block_;
  int64_t outputs_, padded_;
  alignas(64) double term_[kOutputs];
  alignas(64) double error_[kOutputs];
  alignas(64) double a_[kTerms * kRows];
  alignas(64) double b_[kTerms * kColumns];
  Words product_words_, add_words_;
  alignas(64) uint32_t once_[kOutputs];
  int32_t row_of_[kOutputs], column_of_[kOutputs];
};

LOWPREC_END
