#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <set>

#include "../attributes.hpp"

using namespace navis;

namespace {

std::vector<std::uint32_t> labels_of(const Attributes& attributes, NodeId node) {
  const Attributes::Set set = attributes.labels(node);
  return {set.span().begin(), set.span().end()};
}

std::vector<std::uint32_t> numbers(std::uint32_t first, std::uint32_t count) {
  std::vector<std::uint32_t> all(count);
  for (std::uint32_t i = 0; i < count; ++i) all[i] = first + i;
  return all;
}

}  // namespace

TEST_CASE("attributes are what was set last, sets ascending without repetition") {
  Epochs epochs;
  Attributes attributes(epochs);
  CHECK(labels_of(attributes, 7).empty());
  CHECK(std::isnan(attributes.value(7)));
  CHECK_FALSE(attributes.used());
  const std::size_t nothing = attributes.memory_bytes();
  CHECK(nothing == 0);

  const std::uint32_t many[] = {9, 4, 9, 0xFFFFFFFF, 4};
  attributes.set(5, many, -0.0);
  CHECK(labels_of(attributes, 5) == std::vector<std::uint32_t>{4, 9, 0xFFFFFFFF});
  CHECK(std::signbit(attributes.value(5)));
  CHECK(labels_of(attributes, 4).empty());
  CHECK(std::isnan(attributes.value(4)));
  const std::uint32_t one[] = {0};
  attributes.set(5, one, INFINITY);
  CHECK(labels_of(attributes, 5) == std::vector<std::uint32_t>{0});
  CHECK(attributes.value(5) == INFINITY);
  attributes.set(5, {}, -kNoValue);
  CHECK(labels_of(attributes, 5).empty());
  CHECK(std::isnan(attributes.value(5)));
  CHECK(attributes.used());
}

TEST_CASE("labels know their nodes through any history, as a plain map does") {
  Epochs epochs;
  Attributes attributes(epochs);
  std::mt19937 random(3);
  std::vector<std::set<std::uint32_t>> model(500);
  for (int step = 0; step < 20'000; ++step) {
    const auto node = static_cast<NodeId>(random() % model.size());
    model[node].clear();
    if (random() % 4) {
      std::vector<std::uint32_t> labels(random() % 6);
      for (auto& label : labels) label = random() % 30;
      model[node] = {labels.begin(), labels.end()};
      attributes.set(node, labels, kNoValue);
    } else {
      attributes.clear(node);
    }
  }
  for (NodeId node = 0; node < model.size(); ++node) {
    CHECK(labels_of(attributes, node) ==
          std::vector<std::uint32_t>(model[node].begin(), model[node].end()));
  }
  for (std::uint32_t label = 0; label < 31; ++label) {
    std::vector<NodeId> wanted, nodes;
    for (NodeId node = 0; node < model.size(); ++node) {
      if (model[node].contains(label)) wanted.push_back(node);
    }
    CHECK(attributes.by_label().nodes(label, nodes));
    CHECK(nodes == wanted);
    CHECK(attributes.by_label().count(label) == wanted.size());
  }
  CHECK(attributes.by_label().labels() == 30);
  // 20,000 changes of a few labels each, in the room of the largest state.
  CHECK(attributes.memory_bytes() < 300'000);
}

TEST_CASE("a set given up is not written over while a reader may look at it") {
  Epochs epochs;
  Attributes attributes(epochs);
  attributes.set(1, numbers(10, 3), kNoValue);
  {
    const auto guard = epochs.enter_guard();
    const Attributes::Set seen = attributes.labels(1);
    for (std::uint32_t i = 0; i < 50; ++i) attributes.set(1, numbers(100 + i, 3), kNoValue);
    CHECK(seen.span()[0] == 10);
    CHECK(seen.span()[2] == 12);
  }
  attributes.set(1, numbers(1000, 3), kNoValue);
  const std::size_t before = attributes.memory_bytes();
  for (std::uint32_t i = 0; i < 50'000; ++i) attributes.set(1, numbers(i, 3), kNoValue);
  CHECK(attributes.memory_bytes() <= before + 100);
  CHECK(labels_of(attributes, 1) == numbers(49'999, 3));
}

TEST_CASE("large sets stay whole, and go through bytes that come in any pieces") {
  Epochs epochs;
  Attributes attributes(epochs);
  const std::uint32_t sizes[] = {4000, 0, 3000, 1, 4096, 2, 100};
  ByteWriter bytes;
  for (NodeId node = 0; node < 7; ++node) {
    attributes.set(node, numbers(node * 10, sizes[node]), node % 2 ? node : kNoValue);
  }
  for (NodeId node = 0; node < 7; ++node) attributes.put(bytes, node);
  for (const std::size_t piece : {1U, 7U, 4096U, 1'000'000U}) {
    Attributes copy(epochs);
    AttributeStream stream(copy);
    for (std::size_t at = 0; at < bytes.bytes().size(); at += piece) {
      stream.feed(bytes.bytes().subspan(at, std::min(piece, bytes.bytes().size() - at)));
    }
    CHECK(stream.whole());
    CHECK(stream.rows() == 7);
    for (NodeId node = 0; node < 7; ++node) {
      CHECK(labels_of(copy, node) == numbers(node * 10, sizes[node]));
      CHECK(std::isnan(copy.value(node)) == (node % 2 == 0));
    }
  }
  AttributeStream cut(attributes);
  cut.feed(bytes.bytes().first(100));
  CHECK_FALSE(cut.whole());
}

TEST_CASE("a label of very many nodes is counted but not listed") {
  LabelNodes nodes;
  for (NodeId node = 0; node <= LabelNodes::kListed; ++node) nodes.add(3, node);
  std::vector<NodeId> out;
  CHECK_FALSE(nodes.nodes(3, out));
  CHECK(out.empty());
  CHECK(nodes.count(3) == LabelNodes::kListed + 1);
  CHECK(nodes.memory_bytes() < 1000);
  for (NodeId node = 0; node <= LabelNodes::kListed; ++node) nodes.remove(3, node);
  CHECK(nodes.count(3) == 0);
  CHECK(nodes.nodes(3, out));
  nodes.add(3, 8);
  nodes.add(3, 2);
  CHECK(nodes.nodes(3, out));
  CHECK(out == std::vector<NodeId>{2, 8});
}

TEST_CASE("too many labels of one vector are refused by its number") {
  const std::uint64_t at[] = {0, 4096, 8193};
  const AttributeRows rows{at, nullptr, nullptr};
  rows.check(1);
  CHECK_THROWS_WITH_AS(rows.check(2), doctest::Contains("vector 1 of this call has 4097"), Error);
  CHECK(rows.labels_of(0).size() == 4096);
  CHECK(AttributeRows{}.labels_of(5).empty());
  CHECK(std::isnan(AttributeRows{}.value_of(5)));
}
