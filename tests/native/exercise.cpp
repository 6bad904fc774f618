// Calls the C interface with many codes, sizes and alignments, for sanitizers and
// valgrind: arrays end where memory ends, so that one element too far is an error.
//
// Built and run by tests/test_sanitizers.py, together with the library's own sources.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

extern "C" {
int lowprec_set_isa(int isa);
int lowprec_round(int width, const void* x, void* out, int64_t count,
                  const int64_t* code, int threads);
int lowprec_round_stochastic(int width, const void* x, void* out, int64_t count,
                             const int64_t* code, uint64_t seed, uint64_t offset,
                             int threads);
int lowprec_encode(int width, int code_bytes, const void* x, void* codes, int64_t count,
                   const int64_t* encoding);
int lowprec_decode(int width, int code_bytes, const void* codes, void* out,
                   int64_t count, const int64_t* encoding);
int lowprec_matmul(int width, const void* a, const void* b, void* out,
                   const int64_t* geometry, const int64_t* accumulate,
                   const int64_t* product, int64_t order, int64_t block_size,
                   uint64_t seed, uint64_t offset, int threads);
}

namespace {

uint64_t state = 1;
uint64_t checksum = 0;

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
  for (size_t i = 0; i < bytes; ++i) checksum = checksum * 31 + array.data[i];
}

// precision, emin, emax, max_significand, flags
const int64_t formats[][5] = {
    {11, -14, 15, 2047, 31},    {8, -126, 127, 255, 31},    {4, -6, 8, 14, 28},
    {3, -14, 15, 7, 31},        {4, -7, 7, 15, 12},         {8, -126, 127, 255, 30},
    {3, -14, 15, 7, 30},        {4, -6, 7, 15, 7},          {1, -7, 7, 1, 31},
    {24, -126, 127, 16777215, 31}, {3, -140, 100, 7, 31},   {2, 0, 2, 3, 25},
    {16, -126, 127, 65535, 27},
};

const int64_t sizes[] = {0, 1, 3, 7, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 1027};

void round_everything(int width) {
  const size_t element = width / 8;
  for (const auto& format : formats) {
    for (int64_t mode = 0; mode < 9; ++mode) {
      for (int64_t saturation = 0; saturation < 3; ++saturation) {
        const int64_t variant = int64_t(next() % 3);
        const int64_t code[9] = {format[0], format[1],  format[2],
                                 format[3], format[4],  mode,
                                 saturation, int64_t(1 + next() % 32), variant};
        for (const int64_t count : sizes) {
          const size_t bytes = size_t(count) * element;
          Array x(bytes, element * (next() % 5)), out(bytes, element * (next() % 5));
          fill(x, bytes);
          const bool in_place = next() % 2;
          unsigned char* to = in_place ? x.data : out.data;
          const int status =
              mode < 7
                  ? lowprec_round(width, x.data, to, count, code, 1)
                  : lowprec_round_stochastic(width, x.data, to, count, code, next(),
                                             next() % 64, 1);
          if (status) {
            fprintf(stderr, "format of precision %d refused\n", int(format[0]));
            exit(1);
          }
          add(in_place ? x : out, bytes);
        }
      }
    }
  }
}

void code_everything(int width) {
  const int64_t e5m2[9] = {3, -14, 8, 1, 1, 1, 123, 124, 126};
  const int64_t binary16[9] = {11, -14, 16, 1, 1, 1, 31743, 31744, 32256};
  const int64_t* encodings[] = {e5m2, binary16};
  for (const int64_t* encoding : encodings) {
    for (const int bytes : {1, 2, 4, 8}) {
      if (bytes * 8 < encoding[2]) continue;
      for (const int64_t count : sizes) {
        const size_t wide = size_t(count) * width / 8, narrow = size_t(count) * bytes;
        Array x(wide, width / 8 * (next() % 3)), codes(narrow, bytes * (next() % 3));
        fill(x, wide);
        if (lowprec_encode(width, bytes, x.data, codes.data, count, encoding) ||
            lowprec_decode(width, bytes, codes.data, x.data, count, encoding)) {
          fprintf(stderr, "an encoding was refused\n");
          exit(1);
        }
        add(x, wide);
      }
    }
  }
}

// Large enough for threads and for streaming stores of a small cache.
void round_much() {
  const int64_t count = (int64_t(1) << 16) + 5;
  const int64_t code[9] = {4, -6, 8, 14, 28, 0, 0, 32, 0};
  Array x(size_t(count) * 4, 4), out(size_t(count) * 4, 8);
  fill(x, size_t(count) * 4);
  lowprec_round(32, x.data, out.data, count, code, 2);
  add(out, size_t(count) * 4);
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const int isa = atoi(argv[i]);
    if (lowprec_set_isa(isa)) {
      fprintf(stderr, "instruction set %d is not there\n", isa);
      return 2;
    }
    state = 1;
    checksum = 0;
    for (const int width : {32, 64}) {
      round_everything(width);
      code_everything(width);
    }
    round_much();
    printf("%016llx\n", (unsigned long long)checksum);
  }
  return 0;
}
