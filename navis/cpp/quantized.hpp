// Codes of all nodes and the quantizer that made them; replaced as one when the index is retrained.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "chunked.hpp"
#include "kernels.hpp"
#include "pq.hpp"

namespace navis {

struct Quantized {
  explicit Quantized(ProductQuantizer quantizer)
      : pq(std::move(quantizer)), codes(pq.subspaces()) {}

  ProductQuantizer pq;
  ChunkedRows<std::uint8_t> codes;

  // For readers: who still holds the codes of before a retraining can meet nodes inserted since,
  // which have none here. They are misjudged in that one traversal.
  const std::uint8_t* code(NodeId id) const { return codes.row_or_first(id); }

  // Squared distances to a query, whose table is pq.table(query), of many nodes at once.
  void distances(const float* table, const NodeId* ids, std::size_t count, float* out,
                 std::vector<const std::uint8_t*>& scratch) const {
    scratch.resize(count);
    for (std::size_t i = 0; i < count; ++i) scratch[i] = code(ids[i]);
    kernels::adc(table, pq.subspaces(), scratch.data(), count, out);
  }
};

}  // namespace navis
