// An optimizer's settings, and the numbers that one step's kernels work with.
#pragma once

#include <cstdint>
#include <vector>

#include "types.hpp"

namespace smart_infinity {

// As a user gives them to torch.optim; what a kind has no use for is ignored.
struct Settings {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  double momentum = 0, dampening = 0, lr_decay = 0;
  bool nesterov = false, maximize = false;
};

// Computed in double and cast once, as torch's fused kernels do.
struct Hyper {
  float unscale = 1, clip = 1;  // multiply the gradient, one after the other
  bool maximize = false;
  float weight_decay = 0;       // adam, adagrad, sgd: times the parameter, added to the gradient
  float decay = 1;              // adamw: times the parameter
  float lerp = 0;               // 1 - beta1
  float beta2 = 0, fresh2 = 0;  // fresh2 = 1 - beta2
  float bias2_sqrt = 1, eps = 0;
  float minus_step = 0;  // adam: -lr / (1 - beta1^t); adagrad: lr / (1 + (t - 1) lr_decay)
  float momentum = 0, undamped = 1;
  float minus_lr = 0;
  bool nesterov = false;
  bool first = false;  // sgd: no momentum is there yet
};

// `step` counts from 1. `unscale` is what GradScaler.unscale_ multiplies by, `clip` what
// clip_grad_norm_ does. Throws Error(bad_input) where a setting makes no sense.
Hyper hyper(Kind kind, const Settings& settings, std::uint64_t step, float unscale, float clip);
// The same for several settings, each at a step of its own.
std::vector<Hyper> hypers(Kind kind, const std::vector<Settings>& settings,
                          const std::vector<std::uint64_t>& steps, float unscale, float clip);

}  // namespace smart_infinity
