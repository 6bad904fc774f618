// Threads and the floating-point environment.
#pragma once
#include "carrier.h"

LOWPREC_BEGIN

// Rounding directions of the processor, as the control register of x86 numbers them.
enum Direction { kNearest, kDown, kUp, kInward };

// Subnormals honoured, nearest-even unless another direction is asked for:
// torch.set_flush_denormal changes the environment of the calling thread, and worker
// threads have their own. What computes in another direction must be called through a
// pointer, so that the compiler cannot move its operations out of this scope.
class DefaultEnvironment {
 public:
#if defined(__SSE2__)
  explicit DefaultEnvironment(Direction direction = kNearest) : saved_(_mm_getcsr()) {
    _mm_setcsr(0x1F80u | unsigned(direction) << 13);
  }
  ~DefaultEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  explicit DefaultEnvironment(Direction direction = kNearest) {
    // This register has the bits of up and down the other way round.
    const uint64_t bits[] = {0, 2, 1, 3};
    const uint64_t standard = bits[direction] << 22;
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(standard));
  }
  ~DefaultEnvironment() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#else
  explicit DefaultEnvironment(Direction = kNearest) {}
#endif
  DefaultEnvironment(const DefaultEnvironment&) = delete;
  DefaultEnvironment& operator=(const DefaultEnvironment&) = delete;
};

#if defined(__SSE2__) || defined(__aarch64__)
constexpr bool kDirections = true;  // whether directions other than nearest work
#else
constexpr bool kDirections = false;
#endif

// Below this many elements or products per thread, starting threads costs more than it
// gains: where another process has a core, waiting for a thread takes milliseconds.
constexpr int64_t kGrain = 32768;
constexpr int64_t kProductGrain = 1 << 20;

inline int useful_threads(int64_t amount, int threads, int64_t grain = kGrain) {
  const int64_t most = amount / grain;
  return most < 2 || threads < 2 ? 1 : int(most < threads ? most : threads);
}

LOWPREC_END
