// The C interface that native.py calls, and the choice of the instruction set.
#include "table.h"
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace lowprec {
namespace baseline {
extern const Kernels kernels;
}
#if defined(LOWPREC_X86_BUILDS)
namespace v3 {
extern const Kernels kernels;
}
namespace v4 {
extern const Kernels kernels;
}
#endif

namespace {

constexpr int kInterface = 7;  // native.py refuses a library with another number

int best_isa() {
#if defined(LOWPREC_X86_BUILDS)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl");
  return v3 && v4 ? 4 : v3 ? 3 : 2;
#else
  return 2;
#endif
}

const Kernels* kernels_of(int isa) {
#if defined(LOWPREC_X86_BUILDS)
  if (isa == 4) return &v4::kernels;
  if (isa == 3) return &v3::kernels;
#endif
  return isa == 2 ? &baseline::kernels : nullptr;
}

int chosen = best_isa();

// Bytes of the last-level cache, as far as the system tells.
int64_t cache_size() {
  int64_t bytes = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  return bytes > 0 ? bytes : int64_t(32) << 20;
}

const int64_t last_cache = cache_size();

const Kernels& active() { return *kernels_of(chosen); }

Code code_of(const int64_t* c) {
  return Code{c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]};
}

}  // namespace
}  // namespace lowprec

#if defined(_WIN32)
#define LOWPREC_EXPORT extern "C" __declspec(dllexport)
#else
#define LOWPREC_EXPORT extern "C" __attribute__((visibility("default")))
#endif

using lowprec::active;
using lowprec::code_of;

LOWPREC_EXPORT int lowprec_interface() { return lowprec::kInterface; }

// Instruction sets: 2 = baseline of the platform, 3 = x86-64-v3, 4 = x86-64-v4.
LOWPREC_EXPORT int lowprec_isa() { return lowprec::chosen; }
LOWPREC_EXPORT int lowprec_best_isa() { return lowprec::best_isa(); }

// Returns 0, or -1 if this machine cannot run the instruction set.
LOWPREC_EXPORT int lowprec_set_isa(int isa) {
  if (isa > lowprec::best_isa() || lowprec::kernels_of(isa) == nullptr) return -1;
  lowprec::chosen = isa;
  return 0;
}

LOWPREC_EXPORT int lowprec_round(int width, const void* x, void* out, int64_t count,
                                 const int64_t* code, int threads) {
  const lowprec::Elementwise task = {
      x, out, count, code_of(code), 0, 0, lowprec::last_cache, threads};
  return width == 32 ? active().round_f32(task) : active().round_f64(task);
}

LOWPREC_EXPORT int lowprec_round_stochastic(int width, const void* x, void* out,
                                            int64_t count, const int64_t* code,
                                            uint64_t seed, uint64_t offset,
                                            int threads) {
  const lowprec::Elementwise task = {
      x, out, count, code_of(code), seed, offset, lowprec::last_cache, threads};
  return width == 32 ? active().stochastic_f32(task) : active().stochastic_f64(task);
}

// encoding: the integers of an Encoding. Codes are unsigned, of `code_bytes` each.
static int coding(int width, int code_bytes, const void* from, void* to, int64_t count,
                  const int64_t* e, bool decoding, int threads) {
  const lowprec::Encoding encoding = {e[0], e[1], e[2], e[3], e[4],
                                      e[5], e[6], e[7], e[8]};
  return active().coding(
      {from, to, count, encoding, width, code_bytes, decoding, threads});
}

LOWPREC_EXPORT int lowprec_encode(int width, int code_bytes, const void* x, void* codes,
                                  int64_t count, const int64_t* encoding, int threads) {
  return coding(width, code_bytes, x, codes, count, encoding, false, threads);
}

LOWPREC_EXPORT int lowprec_decode(int width, int code_bytes, const void* codes,
                                  void* out, int64_t count, const int64_t* encoding,
                                  int threads) {
  return coding(width, code_bytes, codes, out, count, encoding, true, threads);
}

// geometry: batch, rows, terms, columns, then strides of a (batch, row, term) and of
// b (batch, term, column). A null product means exact products; null `within` means as
// `accumulate`.
LOWPREC_EXPORT int lowprec_matmul(int width, const void* a, const void* b, void* out,
                                  const int64_t* geometry, const int64_t* accumulate,
                                  const int64_t* product, const int64_t* within,
                                  int64_t order, int64_t block_size, uint64_t seed,
                                  uint64_t offset, int threads) {
  const int64_t* g = geometry;
  const lowprec::Matmul task = {a,
                                b,
                                out,
                                g[0],
                                g[1],
                                g[2],
                                g[3],
                                g[4],
                                g[5],
                                g[6],
                                g[7],
                                g[8],
                                g[9],
                                code_of(accumulate),
                                code_of(product ? product : accumulate),
                                product == nullptr,
                                code_of(within ? within : accumulate),
                                within != nullptr,
                                order,
                                block_size,
                                seed,
                                offset,
                                threads};
  return width == 32 ? active().matmul_f32(task) : active().matmul_f64(task);
}

LOWPREC_EXPORT int lowprec_levels(int width, const lowprec::LevelTask* task) {
  return width == 32 ? active().levels_f32(*task) : active().levels_f64(*task);
}

LOWPREC_EXPORT int lowprec_sample_levels(int width, const void* x, void* out,
                                         int64_t count, const void* levels,
                                         int64_t level_count, int64_t mode,
                                         int64_t random_bits, int64_t variant,
                                         uint64_t seed, uint64_t offset, int threads) {
  const lowprec::Choice choice = {x,       out,  count,  levels, level_count, mode,
                                  random_bits, variant, seed, offset, threads};
  return width == 32 ? active().choose_f32(choice) : active().choose_f64(choice);
}

LOWPREC_EXPORT int lowprec_descent(int width, const lowprec::LevelTask* task,
                                   const lowprec::DescentTask* descent) {
  return width == 32 ? active().descent_f32(*task, *descent)
                     : active().descent_f64(*task, *descent);
}
