// All metrics become squared Euclidean distance: cosine by scaling to length 1, inner product by
// one more coordinate that gives every vector the same length (Bachrach et al., 2014). Graph, PQ
// and pruning live in this space and know nothing of metrics.
#pragma once

#include <cmath>
#include <cstddef>

#include "kernels.hpp"
#include "types.hpp"

namespace navis {

class WorkingSpace {
 public:
  // `radius` bounds the vectors' lengths for inner product (longer ones are still ranked exactly,
  // but the graph sees them shortened); unused otherwise.
  WorkingSpace(std::size_t dim, DataType type, Metric metric, float radius)
      : dim_(dim), type_(type), metric_(metric), radius2_(radius * radius) {}

  std::size_t raw_dim() const { return dim_; }
  std::size_t raw_bytes() const { return dim_ * bytes_of(type_); }
  std::size_t dim() const { return dim_ + (metric_ == Metric::inner_product ? 1 : 0); }
  Metric metric() const { return metric_; }
  DataType type() const { return type_; }

  void stored(const void* raw, float* out) const {
    kernels::to_float(type_, raw, dim_, out);
    finish(out, true);
  }
  void query(const float* raw, float* out) const {
    for (std::size_t i = 0; i < dim_; ++i) out[i] = raw[i];
    finish(out, false);
  }
  // Ordering key between a query (from `query`) and a stored vector (from `stored`): the squared
  // distance, exact for inner product even beyond the radius.
  float key(const float* query, const float* vector) const {
    if (metric_ != Metric::inner_product) return kernels::l2(query, vector, dim());
    return kernels::dot(query, query, dim_) + radius2_ - 2 * kernels::dot(query, vector, dim_);
  }
  // A key as people expect it, smaller is nearer: squared L2; 1 - cosine; minus the inner product.
  float distance(float key, const float* query) const {
    if (metric_ == Metric::cosine) return key / 2;
    if (metric_ == Metric::l2) return key;
    return (key - radius2_ - kernels::dot(query, query, dim_)) / 2;
  }

 private:
  void finish(float* out, bool stored_vector) const {
    if (metric_ == Metric::l2) return;
    const float length2 = kernels::dot(out, out, dim_);
    if (metric_ == Metric::cosine) {
      const float scale = length2 > 0 ? 1 / std::sqrt(length2) : 0;
      for (std::size_t i = 0; i < dim_; ++i) out[i] *= scale;
    } else {
      out[dim_] = stored_vector && length2 < radius2_ ? std::sqrt(radius2_ - length2) : 0.0F;
    }
  }

  std::size_t dim_;
  DataType type_;
  Metric metric_;
  float radius2_;
};

}  // namespace navis
