// Products with nearest-even accumulators: the sums stay in registers.
//
// A block of outputs is cut into tiles that fill the registers. Operands are packed so
// that a tile reads them in order: a panel of rows of a, a panel of columns of b, some
// hundreds of terms at a time, so that one panel of b stays in the nearest cache while
// all tiles below it use it. Sums lie in memory tile by tile between the panels.
#pragma once
#include "cutting.h"
#include "stochastic_tile.h"

LOWPREC_BEGIN

// Which functions compute a call, chosen by proofs.h.
template <class C>
struct Method {
  Kernel<C> within, between;
  AddTerms<C> add;         // a whole tile of kTileRows rows
  AddTerms<C> add_narrow;  // kNarrowRows rows
  CombineTile<C> combine;
  StochasticRounding stochastic;
  AddRandomTerms add_random;     // instead of `add`, if stochastic
  RoundProducts round_products;  // before it; null: products stay exact
};

constexpr int64_t kFastRows = 256;  // rows of a block, at most
constexpr int64_t kFastPanels = 4;  // panels of columns in a block, at most
template <class C>
constexpr int64_t kFastTerms = 512 / sizeof(typename C::Float);  // packed at a time
static_assert(TermWords::kCapacity >= kFastTerms<Binary32>,
              "words of all packed terms");

// The memory of one thread. On the stack, where pages are touched once per thread.
template <class C>
struct Workspace {
  using W = typename C::Float;
  alignas(64) W total[kFastRows / kTileRows * kFastPanels * kTileOutputs<C>];
  alignas(64) W partial[kFastRows / kTileRows * kFastPanels * kTileOutputs<C>];
  alignas(64) W a[kFastRows * kFastTerms<C>];
  alignas(64) W b[kTileWidth<C> * kFastTerms<C>];
  alignas(64) W products[kTileWidth<C> * kFastTerms<C>];
};

inline Cutting cut_fast(const Matmul& task, int64_t width) {
  Cutting c;
  c.columns = smaller(task.columns, kFastPanels * width);
  c.across = (task.columns + c.columns - 1) / c.columns;
  // High blocks pack b less often; several for every thread balance the work.
  for (c.rows = kFastRows;; c.rows /= 2) {
    c.down = (task.rows + c.rows - 1) / c.rows;
    c.count = task.batch * c.down * c.across;
    if (task.threads < 2 || c.count >= 4 * task.threads || c.rows <= 4 * kTileRows)
      return c;
  }
}

// Rows of the tile that begins at `row`: a last tile of few rows is narrow.
inline int64_t tile_rows(const Block& block, int64_t row) {
  return block.rows - row <= kNarrowRows ? kNarrowRows : kTileRows;
}

// Writes out[k * width + j] = x[k * term + j * item] for j < count, and zeros behind.
template <int64_t width, class T, class W>
void pack_panel(W* __restrict out, const T* __restrict x, int64_t terms, int64_t term,
                int64_t count, int64_t item) {
  if (count < width) {
    for (int64_t i = 0; i < terms * width; ++i) out[i] = W(0);
    pack(out, x, terms, term, count, item, width);
  } else if (item == 1) {
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t j = 0; j < width; ++j) out[k * width + j] = W(x[k * term + j]);
  } else {
    // A few rows of x at a time, so that all lines that are written stay in cache.
    constexpr int64_t few = width < 8 ? width : 8;
    for (int64_t j = 0; j + few <= width; j += few)
      for (int64_t k = 0; k < terms; ++k)
        for (int64_t i = 0; i < few; ++i)
          out[k * width + j + i] = W(x[k * term + (j + i) * item]);
    for (int64_t j = width / few * few; j < width; ++j)
      for (int64_t k = 0; k < terms; ++k)
        out[k * width + j] = W(x[k * term + j * item]);
  }
}

// C: lanes of the computation. T: type of the operands.
template <class T, class C>
class FastBlock {
 public:
  using W = typename C::Float;

  FastBlock(const Matmul& task, const Method<C>& method, const Block& block,
            Workspace<C>& space)
      : task_(task),
        method_(method),
        block_(block),
        space_(space),
        words_(task.seed, task.offset) {
    panels_ = (block.columns + kTileWidth<C> - 1) / kTileWidth<C>;
    tiles_ = (block.rows + kTileRows - 1) / kTileRows;
    blocked_ = task.order == kBlocked;
  }

  void run(int64_t out_row, int64_t out_column) {
    for (int64_t i = 0; i < tiles_ * panels_ * kTileOutputs<C>; ++i)
      space_.total[i] = W(0);
    const T* right = (const T*)task_.b + block_.batch * task_.b_batch +
                     block_.column * task_.b_column;
    int64_t size = blocked_ ? task_.block_size : task_.terms;
    int64_t until = size;  // terms left in the block of terms
    for (int64_t k = 0; k < task_.terms;) {
      int64_t count = smaller(kFastTerms<C>, task_.terms - k);
      // Whole blocks of terms if they are short, else a part of one.
      if (blocked_ && count > until)
        count =
            size <= kFastTerms<C> ? smaller(count, kFastTerms<C> / size * size) : until;
      pack_rows(k, count);
      if (method_.add_random != nullptr) words_.set_terms(uint32_t(k), count);
      for (int64_t panel = 0; panel < panels_; ++panel) {
        const int64_t column = panel * kTileWidth<C>;
        pack_panel<kTileWidth<C>>(
            space_.b, right + k * task_.b_term + column * task_.b_column, count,
            task_.b_term, smaller(kTileWidth<C>, block_.columns - column),
            task_.b_column);
        for (int64_t tile = 0; tile < tiles_; ++tile)
          add_tile(tile, panel, k, count, smaller(size, until));
      }
      k += count;
      until = count < until ? until - count : size;
    }
    write(out_row, out_column);
  }

 private:
  void pack_rows(int64_t k, int64_t count) {
    const T* left = (const T*)task_.a + block_.batch * task_.a_batch +
                    block_.row * task_.a_row + k * task_.a_term;
    for (int64_t row = 0; row < block_.rows; row += kTileRows) {
      const int64_t height = tile_rows(block_, row);
      const auto pack_tile = height == kTileRows ? pack_panel<kTileRows, T, W>
                                                 : pack_panel<kNarrowRows, T, W>;
      pack_tile(space_.a + row * kFastTerms<C>, left + row * task_.a_row, count,
                task_.a_term, smaller(height, block_.rows - row), task_.a_row);
    }
  }

  // The packed terms of one tile; `until`: terms up to the end of the first block.
  void add_tile(int64_t tile, int64_t panel, int64_t k, int64_t count, int64_t until) {
    const int64_t place = (tile * panels_ + panel) * kTileOutputs<C>;
    const int64_t height = tile_rows(block_, tile * kTileRows);
    const AddTerms<C> add = height == kTileRows ? method_.add : method_.add_narrow;
    const W* a = space_.a + tile * kTileRows * kFastTerms<C>;
    if (method_.add_random != nullptr) {
      add_random(tile, panel, count);
      return;
    }
    if (!blocked_) {
      add(method_.within, {a, space_.b, space_.total + place, count, false});
      return;
    }
    for (int64_t done = 0; done < count;) {
      const int64_t part = smaller(until, count - done);
      add(method_.within, {a + done * height, space_.b + done * kTileWidth<C>,
                           space_.partial + place, part, until == task_.block_size});
      done += part;
      if (part == until || k + done == task_.terms)
        method_.combine(method_.between, space_.total + place, space_.partial + place);
      until = task_.block_size;
    }
  }

  void add_random(int64_t tile, int64_t panel, int64_t count) {
    if constexpr (sizeof(W) == 4) {
      const int64_t height = tile_rows(block_, tile * kTileRows);
      W* sums = space_.total + (tile * panels_ + panel) * kTileOutputs<C>;
      const W* a = space_.a + tile * kTileRows * kFastTerms<C>;
      const W one = 1;
      for (int64_t r = 0; r < smaller(height, block_.rows - tile * kTileRows); ++r) {
        TileRow row = {a + r, height, space_.b, sums + r * kTileWidth<C>,
                       count, &words_};
        if (method_.round_products != nullptr) {
          method_.round_products(method_.within.product, row, space_.products);
          row.a = &one;
          row.stride = 0;
          row.b = space_.products;
        }
        const DefaultEnvironment inward(kInward);
        method_.add_random(method_.stochastic, row,
                           first_word(tile * kTileRows + r, panel));
      }
    }
  }

  uint64_t first_word(int64_t row, int64_t panel) const {
    return task_.offset + uint64_t(first_output(task_, block_, row)) +
           uint64_t(panel * kTileWidth<C>);
  }

  void write(int64_t out_row, int64_t out_column) {
    T* out = (T*)task_.out + block_.batch * task_.rows * task_.columns +
             block_.row * out_row + block_.column * out_column;
    for (int64_t r = 0; r < block_.rows; ++r) {
      const W* sums = space_.total + r / kTileRows * panels_ * kTileOutputs<C> +
                      r % kTileRows * kTileWidth<C>;
      T* row = out + r * out_row;
      for (int64_t c = 0; c < block_.columns; c += kTileWidth<C>) {
        const int64_t count = smaller(kTileWidth<C>, block_.columns - c);
        if (out_column == 1)
          write_row(row + c, sums, count, 1);
        else
          write_row(row + c * out_column, sums, count, out_column);
        sums += kTileOutputs<C>;
      }
    }
  }

  static LOWPREC_INLINE void write_row(T* __restrict out, const W* __restrict sums,
                                       int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; ++i) {
      const T value = T(sums[i]);
      // The payload of a NaN would depend on the order of operands.
      out[i * step] = value == value ? value : T(__builtin_nan(""));
    }
  }

  const Matmul& task_;
  const Method<C>& method_;
  const Block& block_;
  Workspace<C>& space_;
  TermWords words_;
  int64_t panels_, tiles_;
  bool blocked_;
};

template <class T, class C>
void run_block(const Matmul& task, const Method<C>& method, const Block& block,
               int64_t out_row, int64_t out_column) {
  const DefaultEnvironment standard;
  Workspace<C> space;
  FastBlock<T, C>(task, method, block, space).run(out_row, out_column);
}

template <class T, class C>
void run_fast(const Matmul& task, const Method<C>& method, int64_t out_row,
              int64_t out_column) {
  const Cutting cutting = cut_fast(task, kTileWidth<C>);
  [[maybe_unused]] const int team = team_for(task, cutting);
#pragma omp parallel for num_threads(team) schedule(dynamic, 1) if (team > 1)
  for (int64_t number = 0; number < cutting.count; ++number)
    run_block<T, C>(task, method, block_at(task, cutting, number), out_row, out_column);
}

LOWPREC_END
