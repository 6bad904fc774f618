// Matrix products whose every addition rounds.
//
// The outputs are cut into blocks of at most kOutputs elements (rows x columns of one
// matrix). A block holds one sum per output and takes one term of all of them at a
// time, so every loop over the outputs is a vector loop whatever the shape, and the
// order of each sum is that of its definition. Blocks are independent: results depend
// on neither the number of threads nor the cutting.
#pragma once
#include "cutting.h"
#include "proofs.h"
#include "sums.h"

LOWPREC_BEGIN

template <class T>
void store_block(const Matmul& task, const Block& block, const double* total) {
  for (int64_t r = 0; r < block.rows; ++r) {
    T* out = (T*)task.out + first_output(task, block, r);
    for (int64_t c = 0; c < block.columns; ++c) {
      const T value = T(total[r * block.columns + c]);  // exact: see representable()
      // The payload of a NaN would depend on the order of operands of an instruction.
      out[c] = value == value ? value : T(__builtin_nan(""));
    }
  }
}

// Whether T holds every value of the accumulator.
template <class C>
bool representable(const Code& code) {
  return code.precision <= C::precision && code.emax <= C::bias &&
         code.emin - code.precision + 1 >= 2 - C::bias - C::precision;
}

// As in lowprec/kernels/sums.py: errors of products must be normal numbers.
inline bool outside_product_range(const Facts& a, const Facts& b) {
  return a.largest > 0 && b.largest > 0 &&
         (a.largest * b.largest > 0x1p990 || a.smallest * b.smallest < 0x1p-960 ||
          a.largest >= 0x1p990 || b.largest >= 0x1p990);
}

template <class T>
void general_matmul(const Matmul& task, const Recipe& recipe) {
  const Cutting c = cut(task, kOutputs, 1);
  [[maybe_unused]] const int team = team_for(task, c);
#pragma omp parallel for num_threads(team) schedule(dynamic, 1) if (team > 1)
  for (int64_t number = 0; number < c.count; ++number) {
    const DefaultEnvironment standard;
    const Block block = block_at(task, c, number);
    alignas(64) double total[kOutputs] = {0};
    if (task.terms > 0) Sums<T>(task, recipe, block).run(total);
    store_block<T>(task, block, total);
  }
}

template <class T>
Status matmul(const Matmul& task) {
  using C = typename CarrierOf<T>::Carrier;
  if (!valid(task.accumulate) || !valid(task.product) || !valid(task.within))
    return kBadArgument;
  if (task.accumulate.precision > 51 || task.within.precision > 51) return kTooPrecise;
  if (!task.exact_products && task.product.precision > 51) return kTooPrecise;
  if (!representable<C>(task.accumulate)) return kCarrierTooNarrow;
  if (task.order < kSequential || task.order > kKahan ||
      (task.promoted && task.order != kBlocked) ||
      (task.order == kBlocked && task.block_size < 1)) {
    return kBadArgument;
  }
  Plan64 sum, product, within;
  Status status = make_plan<Binary64>(task.accumulate, &sum);
  if (status == kOk) status = make_plan<Binary64>(task.product, &product);
  if (status == kOk) status = make_plan<Binary64>(task.within, &within);
  if (status != kOk) return status;

  const int64_t a_size[3] = {task.batch, task.rows, task.terms};
  const int64_t a_stride[3] = {task.a_batch, task.a_row, task.a_term};
  const int64_t b_size[3] = {task.batch, task.terms, task.columns};
  const int64_t b_stride[3] = {task.b_batch, task.b_term, task.b_column};
  const Facts a = facts_of((const T*)task.a, a_size, a_stride);
  const Facts b = facts_of((const T*)task.b, b_size, b_stride);
  if (sizeof(T) == 8 && outside_product_range(a, b)) return kProductRange;
  if (task.batch * task.rows * task.columns == 0) return kOk;
  if (fast_matmul<T>(task, a, b)) return kOk;
  const bool wide = a.significant_bits + b.significant_bits > 53;
  general_matmul<T>(task, Recipe(task, sum, product, within, wide, sizeof(T) == 8));
  return kOk;
}

LOWPREC_END
