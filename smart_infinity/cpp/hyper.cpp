#include "hyper.hpp"

#include <cmath>

namespace smart_infinity {
namespace {

void require(bool holds, const char* name, double value, const char* rule) {
  if (!holds) {
    throw Error(ErrorKind::bad_input,
                std::string(name) + "=" + std::to_string(value) + ": " + rule);
  }
}

void check(const Settings& s) {
  require(s.lr >= 0 && std::isfinite(s.lr), "lr", s.lr, "use 0 or more");
  require(s.eps >= 0 && std::isfinite(s.eps), "eps", s.eps, "use 0 or more");
  require(s.beta1 >= 0 && s.beta1 < 1, "beta1", s.beta1, "use 0 or more, below 1");
  require(s.beta2 >= 0 && s.beta2 < 1, "beta2", s.beta2, "use 0 or more, below 1");
  require(s.weight_decay >= 0 && std::isfinite(s.weight_decay), "weight_decay", s.weight_decay,
          "use 0 or more");
  require(s.momentum >= 0 && std::isfinite(s.momentum), "momentum", s.momentum, "use 0 or more");
  require(s.lr_decay >= 0 && std::isfinite(s.lr_decay), "lr_decay", s.lr_decay, "use 0 or more");
  require(!s.nesterov || (s.momentum > 0 && s.dampening == 0), "nesterov", 1,
          "needs a momentum and no dampening");
}

}  // namespace

Hyper hyper(Kind kind, const Settings& s, std::uint64_t step, float unscale, float clip) {
  check(s);
  if (step == 0) throw Error(ErrorKind::bad_input, "step 0: steps count from 1");
  const auto t = static_cast<double>(step);
  Hyper h;
  h.unscale = unscale;
  h.clip = clip;
  h.maximize = s.maximize;
  h.eps = static_cast<float>(s.eps);
  if (kind == Kind::adamw) {
    h.decay = static_cast<float>(1 - s.lr * s.weight_decay);
  } else {
    h.weight_decay = static_cast<float>(s.weight_decay);
  }
  switch (kind) {
    case Kind::adamw:
    case Kind::adam:
      h.lerp = static_cast<float>(1 - s.beta1);
      h.beta2 = static_cast<float>(s.beta2);
      h.fresh2 = static_cast<float>(1 - s.beta2);
      h.bias2_sqrt = static_cast<float>(std::sqrt(1 - std::pow(s.beta2, t)));
      h.minus_step = static_cast<float>(-(s.lr / (1 - std::pow(s.beta1, t))));
      break;
    case Kind::adagrad:
      h.minus_step = static_cast<float>(s.lr / (1 + (t - 1) * s.lr_decay));
      break;
    case Kind::sgd:
      h.momentum = static_cast<float>(s.momentum);
      h.undamped = static_cast<float>(1 - s.dampening);
      h.minus_lr = static_cast<float>(-s.lr);
      h.nesterov = s.nesterov;
      h.first = step == 1;
      break;
  }
  return h;
}

std::vector<Hyper> hypers(Kind kind, const std::vector<Settings>& settings,
                          const std::vector<std::uint64_t>& steps, float unscale, float clip) {
  if (settings.size() != steps.size()) {
    throw Error(ErrorKind::bad_input, "settings and steps of different lengths");
  }
  std::vector<Hyper> made;
  for (std::size_t i = 0; i < settings.size(); ++i) {
    made.push_back(hyper(kind, settings[i], steps[i], unscale, clip));
  }
  return made;
}

}  // namespace smart_infinity
