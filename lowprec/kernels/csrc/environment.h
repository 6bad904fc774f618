// Threads and the floating-point environment.
#pragma once
#include "carrier.h"

LOWPREC_BEGIN

// Nearest-even, subnormals honoured: torch.set_flush_denormal changes the environment
// of the calling thread, and worker threads have their own.
class DefaultEnvironment {
 public:
#if defined(__SSE2__)
  DefaultEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~DefaultEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  DefaultEnvironment() {
    const uint64_t standard = 0;
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(standard));
  }
  ~DefaultEnvironment() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  DefaultEnvironment() {}
#endif
  DefaultEnvironment(const DefaultEnvironment&) = delete;
  DefaultEnvironment& operator=(const DefaultEnvironment&) = delete;
};

// Below this many elements or products per thread, starting threads costs more than it
// gains: where another process has a core, waiting for a thread takes milliseconds.
constexpr int64_t kGrain = 32768;
constexpr int64_t kProductGrain = 1 << 20;

inline int useful_threads(int64_t amount, int threads, int64_t grain = kGrain) {
  const int64_t most = amount / grain;
  return most < 2 || threads < 2 ? 1 : int(most < threads ? most : threads);
}

LOWPREC_END
