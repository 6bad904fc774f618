// Cutting the outputs into blocks, and blocks into the work of threads.
#pragma once
#include "operands.h"

LOWPREC_BEGIN

// How a product is cut into blocks.
struct Cutting {
  int64_t columns, rows, across, down, count;
};

// Blocks of at most `outputs` elements, with rows padded to whole vectors of `lanes`.
inline Cutting cut(const Matmul& task, int64_t outputs, int64_t lanes) {
  Cutting c;
  c.columns = smaller(task.columns, kColumns);
  const int64_t width = (c.columns + lanes - 1) / lanes * lanes;
  c.rows = smaller(smaller(task.rows, kRows), outputs / width);
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

inline int team_for(const Matmul& task, const Cutting& c) {
  const int64_t work = task.batch * task.rows * task.columns * (task.terms + 1);
  const int team = useful_threads(work, task.threads, kProductGrain);
  return team > c.count ? int(c.count) : team;
}

LOWPREC_END
