// Matrix products whose every addition rounds.
//
// The outputs are cut into blocks of at most kOutputs elements (rows x columns of one
// matrix). A block holds one sum per output and takes one term of all of them at a
// time, so every loop over the outputs is a vector loop whatever the shape, and the
// order of each sum is that of its definition. Blocks are independent: results depend
// on neither the number of threads nor the cutting.
#pragma once
#include "operands.h"
#include "philox.h"
#include "sums.h"

LOWPREC_BEGIN

struct Cutting {
  int64_t columns, rows, across, down, count;
};

inline Cutting cut(const Matmul& task) {
  Cutting c;
  c.columns = smaller(task.columns, kColumns);
  c.rows = smaller(task.rows, kOutputs / c.columns);
  c.across = (task.columns + c.columns - 1) / c.columns;
  c.down = (task.rows + c.rows - 1) / c.rows;
  c.count = task.batch * c.down * c.across;
  return c;
}

inline Block block_at(const Matmul& task, const Cutting& c, int64_t number) {
  Block block;
  block.column = number % c.across * c.columns;
  block.row = number / c.across % c.down * c.rows;
  block.batch = number / c.across / c.down;
  block.columns = smaller(c.columns, task.columns - block.column);
  block.rows = smaller(c.rows, task.rows - block.row);
  return block;
}

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

template <class T>
Status matmul(const Matmul& task) {
  using C = typename CarrierOf<T>::Carrier;
  if (!valid(task.accumulate) || !valid(task.product)) return kBadArgument;
  if (task.accumulate.precision > 51) return kTooPrecise;
  if (!task.exact_products && task.product.precision > 51) return kTooPrecise;
  if (!representable<C>(task.accumulate)) return kCarrierTooNarrow;
  if (task.order < kSequential || task.order > kPairwise ||
      (task.order == kBlocked && task.block_size < 1)) {
    return kBadArgument;
  }
  Recipe recipe;
  Status status = make_plan<Binary64>(task.accumulate, &recipe.add_plan);
  if (status == kOk) status = make_plan<Binary64>(task.product, &recipe.product_plan);
  if (status == kOk) status = choose<T>(task, &recipe);
  if (status != kOk || task.batch * task.rows * task.columns == 0) return status;

  const Cutting c = cut(task);
  const int64_t work = task.batch * task.rows * task.columns * (task.terms + 1);
  int team = useful_threads(work, task.threads);
  if (team > c.count) team = int(c.count);
#pragma omp parallel for num_threads(team) schedule(dynamic, 1) if (team > 1)
  for (int64_t number = 0; number < c.count; ++number) {
    const DefaultEnvironment standard;
    const Block block = block_at(task, c, number);
    alignas(64) double total[kOutputs] = {0};
    if (task.terms > 0) Sums<T>(task, recipe, block).run(total);
    store_block<T>(task, block, total);
  }
  return kOk;
}

LOWPREC_END
