// Steps of gradient descent whose directions are skewed, in one pass.
//
// Lines are torch's operations on whole tensors (lowprec/optim/_sgd.py), in its order.
#pragma once
#include "levels.h"

LOWPREC_BEGIN

template <class C>
struct Descent {
  using Float = typename C::Float;
  Float step, decay, momentum, share;
  bool maximize, decays, first_momentum, nesterov, skew_gradient, fused;

  explicit Descent(const DescentTask& task)
      : step(Float(-task.step_size)),
        decay(Float(task.decay)),
        momentum(Float(task.momentum)),
        share(Float(task.share)),
        maximize(task.maximize != 0),
        decays(task.decay != 0),
        first_momentum(task.first_momentum != 0),
        nesterov(task.nesterov != 0),
        skew_gradient(task.skew_gradient != 0),
        fused(task.fused != 0) {}

  LOWPREC_INLINE VFloat<C> added(VFloat<C> to, VFloat<C> x, Float factor) const {
    return multiply_add<C>(x, splat<VFloat<C>>(factor), to, fused);
  }

  // Whether the direction is the skewed gradient and nothing else.
  bool plain() const { return !maximize && !decays && fused; }

  // Moves weights w and their momentum, if there is any.
  template <int64_t operation>
  LOWPREC_INLINE void move(const LevelFunction<C, operation>& levels, VFloat<C>* w,
                           VFloat<C> d, VFloat<C>* buffer) const {
    const VFloat<C> z = levels.in_units(*w);
    if (maximize) d = -d;
    if (decays) d = added(d, *w, decay);
    if (skew_gradient) d = levels.skewed(z, d);
    if (buffer) {
      *buffer = first_momentum ? d : added(*buffer * momentum, d, share);
      d = nesterov ? added(d, *buffer, momentum) : *buffer;
    }
    if (!skew_gradient) d = levels.skewed(z, d);
    *w = levels.clamped(added(*w, d, step));
  }
};

template <class C, int64_t operation>
void descent_run(const LevelFunction<C, operation>& shared, const Descent<C>& given,
                 typename C::Float* weights, const typename C::Float* gradients,
                 typename C::Float* buffers, int64_t count) {
  const LevelFunction<C, operation> levels = shared;  // cannot alias the output
  const Descent<C> descent = given;
  int64_t i = 0;
  if (!buffers && descent.plain()) {
    for (; i + C::lanes <= count; i += C::lanes) {
      const VFloat<C> w = load<VFloat<C>>(weights + i);
      const VFloat<C> d =
          levels.skewed(levels.in_units(w), load<VFloat<C>>(gradients + i));
      const VFloat<C> step = splat<VFloat<C>>(descent.step);
      store(weights + i, levels.clamped(multiply_add<C>(d, step, w, true)));
    }
  }
  for (; i < count; i += C::lanes) {
    const int64_t some = smaller<int64_t>(C::lanes, count - i);
    VFloat<C> w = {}, d = {}, buffer = {};
    load_some(&w, weights + i, some);
    load_some(&d, gradients + i, some);
    if (buffers) load_some(&buffer, buffers + i, some);
    descent.move(levels, &w, d, buffers ? &buffer : nullptr);
    store_some(weights + i, w, some);
    if (buffers) store_some(buffers + i, buffer, some);
  }
}

template <class C, int64_t operation>
Status descent_loop(const LevelTask& task, const DescentTask& given) {
  using Float = typename C::Float;
  const Descent<C> descent(given);
  Float* weights = (Float*)task.weights;
  Float* buffers = (Float*)task.out;
  const Float* gradients = (const Float*)given.gradients;
  for_level_runs<C, operation>(
      task, [&](const LevelFunction<C, operation>& function, int64_t begin,
                int64_t count) {
        descent_run(function, descent, weights + begin, gradients + begin,
                    buffers ? buffers + begin : nullptr, count);
      });
  return kOk;
}

template <class C>
Status descent_array(const LevelTask& task, const DescentTask& descent) {
  if (task.count < 0 || task.width < 1) return kBadArgument;
  switch (task.operation) {
    case kSkewQuadratic:
      return descent_loop<C, kSkewQuadratic>(task, descent);
    case kSkewQuartic:
      return descent_loop<C, kSkewQuartic>(task, descent);
    case kSkewExtended:
      return descent_loop<C, kSkewExtended>(task, descent);
    default:
      return kBadArgument;
  }
}

LOWPREC_END
