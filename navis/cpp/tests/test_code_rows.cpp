#include <doctest/doctest.h>

#include <memory>
#include <random>
#include <vector>

#include "../code_rows.hpp"
#include "../kernels.hpp"

namespace navis {
namespace {

// Codes of `nodes` nodes over codebooks whose rows are floats where `wide`, else 7-bit numbers.
std::unique_ptr<Quantized> codes(std::size_t dim, std::size_t nodes, bool wide) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const std::size_t subspaces = dim / 4;
  std::vector<float> books(subspaces * 256 * 4);
  for (float& entry : books) entry = normal(random);
  if (wide) books[0] = 1e6F;
  auto made = std::make_unique<Quantized>(ProductQuantizer(dim, subspaces, std::move(books)));
  made->codes.grow(nodes);
  for (NodeId id = 0; id < nodes; ++id) {
    for (std::size_t m = 0; m < subspaces; ++m) {
      made->codes.row(id)[m] = static_cast<std::uint8_t>(random());
    }
  }
  return made;
}

TEST_CASE("code rows: distances are the codes', however often all is forgotten") {
  for (const bool wide : {false, true}) {
    // In 1 MiB is room for some hundred rows of either kind, fewer than the nodes asked for.
    const std::size_t nodes = 2000, dim = wide ? 2048 : 4096;
    const auto quantized = codes(dim, nodes, wide);
    const ProductQuantizer& pq = quantized->pq;
    REQUIRE((pq.row_bytes() == dim * sizeof(float)) == wide);
    auto row = [&](const std::uint8_t* code) {
      std::vector<std::byte> made(pq.row_bytes());
      pq.row(code, made.data());
      return made;
    };
    CodeRows rows;
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    for (int round = 0; round < 3; ++round) {
      std::vector<float> newcomer(dim), table(pq.subspaces() * 256), decoded(dim);
      for (float& entry : newcomer) entry = normal(random);
      pq.table(newcomer.data(), table.data());
      rows.begin(*quantized, table.data());
      for (int list = 0; list < 60; ++list) {
        const std::size_t count = 1 + random() % 40;
        rows.make_room(count + 1);
        const std::size_t own = rows.add(newcomer.data());
        NodeId before = 0;
        std::size_t row_before = 0;
        for (std::size_t i = 0; i < count; ++i) {
          const auto id = static_cast<NodeId>(random() % nodes);
          const std::size_t at = rows.find(id);
          CHECK(rows.find(id) == at);
          const auto mine = row(quantized->code(id));
          pq.decode(quantized->code(id), decoded.data());
          CHECK(rows.to_newcomer(at) ==
                doctest::Approx(kernels::l2(newcomer.data(), decoded.data(), dim)));
          CHECK(rows.distance(own, at) == doctest::Approx(rows.to_newcomer(at)).epsilon(0.03));
          if (i > 0) {
            const auto other = row(quantized->code(before));
            CHECK(rows.distance(row_before, at) == pq.row_distance(other.data(), mine.data()));
          }
          before = id;
          row_before = at;
        }
      }
    }
  }
}

}  // namespace
}  // namespace navis
