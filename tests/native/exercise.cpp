// Calls the C interface with many codes, sizes, alignments and layouts, for sanitizers
// and valgrind: arrays end where memory ends, so that one element too far is an error.
// Prints a digest of the results per class of operations: every instruction set and
// every processor must print the same.
//
// Built and run by tests/test_sanitizers.py and tests/test_processors.py.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "../../lowprec/kernels/csrc/table.h"

extern "C" {
int lowprec_set_isa(int isa);
int lowprec_round(int width, const void* x, void* out, int64_t count,
                  const int64_t* code, int threads);
int lowprec_round_stochastic(int width, const void* x, void* out, int64_t count,
                             const int64_t* code, uint64_t seed, uint64_t offset,
                             int threads);
int lowprec_encode(int width, int code_bytes, const void* x, void* codes, int64_t count,
                   const int64_t* encoding, int threads);
int lowprec_decode(int width, int code_bytes, const void* codes, void* out,
                   int64_t count, const int64_t* encoding, int threads);
int lowprec_matmul(int width, const void* a, const void* b, void* out,
                   const int64_t* geometry, const int64_t* accumulate,
                   const int64_t* product, const int64_t* within, int64_t order,
                   int64_t block_size, uint64_t seed, uint64_t offset, int threads);
int lowprec_levels(int width, const lowprec::LevelTask* task);
int lowprec_descent(int width, const lowprec::LevelTask* task,
                    const lowprec::DescentTask* descent);
int lowprec_sample_levels(int width, const void* x, void* out, int64_t count,
                          const void* levels, int64_t level_count, int64_t mode,
                          int64_t random_bits, int64_t variant, uint64_t seed,
                          uint64_t offset, int threads);
}

namespace {

constexpr uint64_t kEmpty = 0xcbf29ce484222325u;  // FNV-1a
uint64_t state = 1;
uint64_t digest = kEmpty;

// Arguments of a call have no order: draw into a name before, where there are several.
uint64_t next() {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

// An array of its own on the heap, `shift` bytes after its beginning, ending with it.
struct Array {
  unsigned char* memory;
  unsigned char* data;
  Array(size_t bytes, size_t shift)
      : memory((unsigned char*)malloc(bytes + shift + 1)), data(memory + shift) {
    memory = (unsigned char*)realloc(memory, bytes + shift ? bytes + shift : 1);
    data = memory + shift;
  }
  ~Array() { free(memory); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
};

void fill(Array& array, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 4) {
    const uint32_t word = uint32_t(next() >> 20);
    memcpy(array.data + i, &word, 4);
  }
}

void add(const Array& array, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) digest = (digest ^ array.data[i]) * 0x100000001b3u;
}

// Prints the digest of what was added since the last call.
void report(int width, const char* name) {
  printf("float%d %s %016llx\n", width, name, (unsigned long long)digest);
  digest = kEmpty;
}

void require(int status, const char* what) {
  if (status == 0) return;
  fprintf(stderr, "%s was refused with status %d\n", what, status);
  exit(1);
}

// precision, emin, emax, max_significand, flags
const int64_t formats[][5] = {
    {11, -14, 15, 2047, 31},       {8, -126, 127, 255, 31}, {4, -6, 8, 14, 28},
    {3, -14, 15, 7, 31},           {4, -7, 7, 15, 12},      {8, -126, 127, 255, 30},
    {3, -14, 15, 7, 30},           {4, -6, 7, 15, 7},       {1, -7, 7, 1, 31},
    {24, -126, 127, 16777215, 31}, {3, -140, 100, 7, 31},   {2, 0, 2, 3, 25},
    {16, -126, 127, 65535, 27},
};

// Posits, fixed point, and formats that lack a zero or 2^emin, or have odd and even
// powers of two; then fixed point that wraps.
const int64_t special_formats[][5] = {
    {8, -24, 24, 1, 524}, {16, -14, 14, 1, 524},  {6, -32, 32, 1, 524},
    {7, 6, 6, 127, 41},   {1, -126, 127, 1, 132}, {10, -31, 32, 1022, 284},
    {1, -63, 62, 1, 79},  {9, -63, 64, 510, 260},
};
const int64_t wrapping_formats[][5] = {
    {7, 6, 6, 127, 41}, {8, 3, 3, 255, 1}, {15, 6, 6, 32767, 9}};

const int64_t sizes[] = {0, 1, 3, 7, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 1027};

const char* const modes[] = {"nearest_even",    "nearest_away",    "nearest_zero",
                             "toward_positive", "toward_negative", "toward_zero",
                             "to_odd",          "stochastic",      "stochastic_equal"};

// Nine integers of a rounding to the given format.
struct Code {
  int64_t integers[9];
  Code(const int64_t (&format)[5], int64_t mode, int64_t saturation)
      : integers{format[0], format[1], format[2], format[3],
                 format[4], mode,      saturation} {
    integers[7] = int64_t(1 + next() % 32);
    integers[8] = int64_t(next() % 3);
  }
};

void round_arrays(int width, const Code& code) {
  const size_t element = width / 8;
  for (const int64_t count : sizes) {
    const size_t bytes = size_t(count) * element;
    Array x(bytes, element * (next() % 5)), out(bytes, element * (next() % 5));
    fill(x, bytes);
    const bool in_place = next() % 2;
    unsigned char* to = in_place ? x.data : out.data;
    const uint64_t seed = next(), offset = next() % 64;
    if (code.integers[5] < 7) {
      require(lowprec_round(width, x.data, to, count, code.integers, 1), "a rounding");
    } else {
      require(lowprec_round_stochastic(width, x.data, to, count, code.integers, seed,
                                       offset, 1),
              "a stochastic rounding");
    }
    add(in_place ? x : out, bytes);
  }
}

void round_everything(int width) {
  for (int64_t mode = 0; mode < 9; ++mode) {
    for (const auto& format : formats)
      for (int64_t saturation = 0; saturation < 3; ++saturation)
        round_arrays(width, Code(format, mode, saturation));
    report(width, modes[mode]);
  }
}

void round_specially(int width) {
  for (int64_t mode = 0; mode < 9; ++mode) {
    for (const auto& format : special_formats)
      for (int64_t saturation = 0; saturation < 3; ++saturation)
        round_arrays(width, Code(format, mode, saturation));
    for (const auto& format : wrapping_formats)
      round_arrays(width, Code(format, mode, 3));
  }
  report(width, "special_formats");
}

// Large enough for threads and for streaming stores of a small cache.
void round_much() {
  const int64_t count = (int64_t(1) << 16) + 5;
  const size_t bytes = size_t(count) * 4;
  Array x(bytes, 4), out(bytes, 8);
  fill(x, bytes);
  const Code code(formats[2], 0, 0);
  require(lowprec_round(32, x.data, out.data, count, code.integers, 2), "much");
  add(out, bytes);
  report(32, "two_threads");
}

void code_everything(int width) {
  // precision, emin, bits, signed, signed zero, subnormals, largest, infinity, nan
  const int64_t encodings[][9] = {
      {3, -14, 8, 1, 1, 1, 123, 124, 126},          // e5m2
      {4, -6, 8, 1, 1, 1, 126, -1, 127},            // e4m3fn
      {4, -7, 8, 1, 0, 1, 127, -1, 128},            // e4m3fnuz
      {11, -14, 16, 1, 1, 1, 31743, 31744, 32256},  // binary16
      {0, 2, 8, 1, 0, 0, 0, 0, 128},                // posit8
      {0, 1, 16, 1, 0, 0, 0, 0, 32768},             // posit16_1
  };
  for (const auto& encoding : encodings) {
    for (const int bytes : {1, 2, 4, 8}) {
      if (bytes * 8 < encoding[2]) continue;
      for (const int64_t count : sizes) {
        const size_t wide = size_t(count) * width / 8, narrow = size_t(count) * bytes;
        Array x(wide, width / 8 * (next() % 3)), codes(narrow, bytes * (next() % 3));
        fill(x, wide);
        require(lowprec_encode(width, bytes, x.data, codes.data, count, encoding, 2),
                "an encoding");
        add(codes, narrow);
        require(lowprec_decode(width, bytes, codes.data, x.data, count, encoding, 2),
                "a decoding");
        add(x, wide);
      }
    }
  }
  report(width, "coding");
}

// Numbers of moderate size.
template <class T>
void fill_numbers(Array& array, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = T(int64_t(next() >> 40) % 4001 - 2000) / T(512);
    memcpy(array.data + i * sizeof(T), &value, sizeof(T));
  }
}

// Increasing levels, and what lies between them.
template <class T>
void fill_levels(Array& levels, Array& middles, int64_t width) {
  T level = T(-2);
  for (int64_t i = 0; i < width; ++i) {
    const T above = level + T(1 + next() % 8) / T(2 * width);
    const T middle = level + (above - level) / T(2);
    memcpy(levels.data + i * sizeof(T), &level, sizeof(T));
    if (i + 1 < width) memcpy(middles.data + i * sizeof(T), &middle, sizeof(T));
    level = above;
  }
}

// Every function of weights and levels, and descent, for few levels and for many.
template <class T>
void level_everything() {
  const int width = int(8 * sizeof(T));
  const int64_t lengths[] = {1, 2, 3, 16, 17, 40, 256};
  for (const int64_t count : sizes) {
    for (const int64_t length : lengths) {
      const size_t bytes = size_t(count) * sizeof(T);
      Array weights(bytes, sizeof(T)), directions(bytes, 0), out(bytes, sizeof(T));
      Array levels(size_t(length) * sizeof(T), 0);
      Array middles(size_t(length - 1) * sizeof(T), 0);
      Array scale(sizeof(T), 0), squares(size_t(count / 4096 + 1) * 8, 0);
      const T one = T(next() % 2 ? 1 : 0.5);
      memcpy(scale.data, &one, sizeof(T));
      fill_levels<T>(levels, middles, length);
      fill_numbers<T>(weights, count);
      fill_numbers<T>(directions, count);
      lowprec::LevelTask task = {};
      task.weights = weights.data;
      task.directions = directions.data;
      task.count = count;
      task.levels = levels.data;
      task.middles = middles.data;
      task.width = length;
      task.scales = scale.data;
      task.epsilon = 0.25;
      task.alpha = 0.5;
      task.clip = 2;
      task.factor = 0.125;
      task.seed = next();
      task.offset = next() % 64;
      task.low = -INFINITY;
      task.high = INFINITY;
      task.threads = 1;
      for (task.operation = 0; task.operation <= lowprec::kSquaredDistances;
           ++task.operation) {
        const bool squared = task.operation == lowprec::kSquaredDistances;
        task.out = squared ? squares.data : out.data;
        require(lowprec_levels(width, &task), "a function of levels");
        if (!squared) add(out, bytes);
      }
      if (count) add(squares, size_t(count + 4095) / 4096 * 8);
      for (int64_t mode = 7; mode < 9 && length > 1; ++mode) {
        const int64_t random_bits = int64_t(1 + next() % 32);
        const uint64_t seed = next(), offset = next() % 64;
        require(lowprec_sample_levels(width, weights.data, out.data, count, levels.data,
                                      length, mode, random_bits, count % 3, seed,
                                      offset, 1),
                "levels at random");
        add(out, bytes);
      }
      Array gradients(bytes, 0), buffers(bytes, sizeof(T));
      fill_numbers<T>(gradients, count);
      fill_numbers<T>(buffers, count);
      lowprec::DescentTask descent = {};
      descent.gradients = gradients.data;
      descent.step_size = 0.25;
      descent.momentum = 0.5;
      descent.share = 1;
      descent.skew_gradient = int64_t(next() % 2);
      descent.fused = 1;
      for (task.operation = lowprec::kSkewQuadratic;
           task.operation <= lowprec::kSkewExtended; ++task.operation) {
        task.out = task.operation == lowprec::kSkewQuartic ? nullptr : buffers.data;
        descent.decay = task.operation == lowprec::kSkewExtended ? 0.125 : 0;
        require(lowprec_descent(width, &task, &descent), "a step");
        add(weights, bytes);
        add(buffers, bytes);
      }
    }
  }
  report(width, "levels");
}

// Operands: 4 or 24 significant bits with near exponents, or (float32) any pattern.
template <class T>
void fill_operand(Array& array, int64_t count, int kind) {
  if (kind == 2 && sizeof(T) == 4) return fill(array, size_t(count) * sizeof(T));
  const int bits = kind == 0 ? 4 : 24;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t significand = int64_t(next() >> 20) % (int64_t(2) << bits);
    const int exponent = int(next() % 12) - bits;
    const T value = T(ldexp(double(significand - (int64_t(1) << bits)), exponent));
    memcpy(array.data + i * sizeof(T), &value, sizeof(T));
  }
}

struct Shape {
  int64_t batch, rows, terms, columns;
};

// Rounded products are of the accumulator's format; `inner` is null for none within.
template <class T>
void multiply(const Shape& shape, int kind, const Code& code, bool exact_products,
              const Code* inner, int64_t order, int threads) {
  const auto [batch, rows, terms, columns] = shape;
  const size_t element = sizeof(T), bytes = size_t(batch * rows * columns) * element;
  Array a(size_t(batch * rows * terms) * element, element * (next() % 3));
  Array b(size_t(batch * terms * columns) * element, element * (next() % 3));
  Array out(bytes, element * (next() % 3));
  fill_operand<T>(a, batch * rows * terms, kind);
  fill_operand<T>(b, batch * terms * columns, kind);
  const bool a_transposed = next() % 2, b_transposed = next() % 2;
  const int64_t geometry[10] = {
      batch,
      rows,
      terms,
      columns,
      rows * terms,
      a_transposed ? 1 : terms,
      a_transposed ? rows : 1,
      terms * columns,
      b_transposed ? 1 : columns,
      b_transposed ? terms : 1,
  };
  const int64_t block_size = 1 + int64_t(next() % 20);
  const uint64_t seed = next(), offset = next() % 64;
  const int width = int(8 * sizeof(T));
  require(lowprec_matmul(width, a.data, b.data, out.data, geometry, code.integers,
                         exact_products ? nullptr : code.integers,
                         inner ? inner->integers : nullptr, order, block_size, seed,
                         offset, threads),
          "a product");
  add(out, bytes);
}

template <class T>
void multiply_everything() {
  const char* const orders[] = {"sequential", "blocked", "pairwise", "kahan"};
  const size_t format_count = sizeof formats / sizeof formats[0];
  for (int64_t order = 0; order < 4; ++order) {
    for (int64_t mode = 0; mode < 9; ++mode) {
      for (const int kind : {0, 1, 2}) {
        for (const bool exact_products : {true, false}) {
          for (int repetition = 0; repetition < 3; ++repetition) {
            const auto& format = formats[next() % format_count];
            const int64_t saturation = int64_t(next() % 3);
            const Code code(format, mode, saturation);
            const Code inner(formats[next() % format_count], 0, 0);
            const bool promoted = order == 1 && next() % 2;
            const int64_t rows = int64_t(next() % 20), terms = int64_t(next() % 50);
            const int64_t columns = int64_t(next() % 90);
            const Shape shape = {1 + int64_t(next() % 2), rows, terms, columns};
            multiply<T>(shape, kind, code, exact_products, promoted ? &inner : nullptr,
                        order, 1);
          }
        }
      }
    }
    report(int(8 * sizeof(T)), orders[order]);
  }
}

// Enough products for two threads, on the paths for few and for many bits.
void multiply_much() {
  for (const int kind : {0, 1}) {
    const Code code(formats[2], 0, 0);
    multiply<float>({1, 131, 130, 129}, kind, code, true, nullptr, 0, 2);
  }
  report(32, "products_of_two_threads");
}

}  // namespace

int main(int argc, char** argv) {
  const int isa = argc == 2 ? atoi(argv[1]) : 0;
  if (lowprec_set_isa(isa)) {
    fprintf(stderr, "instruction set %d is not there\n", isa);
    return 2;
  }
  for (const int width : {32, 64}) {
    round_everything(width);
    round_specially(width);
    code_everything(width);
  }
  level_everything<float>();
  level_everything<double>();
  round_much();
  multiply_everything<float>();
  multiply_everything<double>();
  multiply_much();
  return 0;
}
