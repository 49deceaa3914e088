#include "tile.hpp"

#include <algorithm>
#include <cstring>

#include "codec.hpp"
#include "opencl_update.hpp"

namespace smart_infinity {
namespace {

std::size_t whole_blocks(std::size_t n) {
  return (n + codec::kBlock - 1) / codec::kBlock * codec::kBlock;
}

// Numbers [begin, begin + n) of a stored array of `all`; blocks begin and end with the range.
void decode_range(const Shape& shape, std::size_t array, const std::byte* stored, std::size_t all,
                  std::size_t begin, std::size_t n, float* out) {
  if (shape.moments == Moments::bfloat16) {
    codec::decode_bf16(stored + 2 * begin, n, out);
  } else {
    const std::byte* scales = stored + whole_blocks(all);
    codec::decode_blocks(static_cast<std::uint32_t>(array), stored + begin,
                         scales + begin / codec::kBlock * 4, whole_blocks(n), out);
  }
}

void encode_range(const Shape& shape, std::size_t array, std::span<const Segment> segments,
                  std::uint64_t step, const float* values, std::byte* stored, std::size_t all,
                  std::size_t begin, std::size_t n) {
  const auto at = static_cast<std::uint32_t>(array);
  if (shape.moments == Moments::blocks8) {
    // A block belongs to one parameter, and begins with it or a multiple of blocks behind.
    for (std::size_t block = begin; block < begin + n; block += codec::kBlock) {
      for (const Segment& s : segments) {
        if (block < s.begin || s.end <= block) continue;
        const codec::Place place{step, s.parameter, at, s.element + (block - s.begin)};
        codec::encode_blocks(values + (block - begin), codec::kBlock, place, stored + block,
                             stored + whole_blocks(all) + block / codec::kBlock * 4);
      }
    }
    return;
  }
  for (const Segment& s : segments) {
    const std::size_t from = std::max<std::size_t>(s.begin, begin);
    const std::size_t to = std::min<std::size_t>(s.end, begin + n);
    if (from >= to) continue;
    codec::encode_bf16(values + (from - begin), to - from,
                       {step, s.parameter, at, s.element + (from - s.begin)}, stored + 2 * from);
  }
}

class CpuTileUpdate final : public TileUpdate {
 public:
  bool run(const Shape& shape, std::span<const Segment> segments, const StepPlan& plan,
           const Gradient& gradient, const Record& record, std::byte* out, Dtype out_type) override;

 private:
  // So much is decoded, stepped and encoded at a time: it stays in the first cache.
  static constexpr std::size_t kChunk = 4096;

  std::vector<float> dense_;      // of a compressed gradient, the whole tile
  std::vector<Segment> touched_;  // of the chunk at hand
  float gradient_[kChunk], first_[kChunk], second_[kChunk];
};

bool CpuTileUpdate::run(const Shape& shape, std::span<const Segment> segments, const StepPlan& plan,
                        const Gradient& gradient, const Record& record, std::byte* out,
                        Dtype out_type) {
  const std::size_t n = record.n;
  if (gradient.encoding == Encoding::topk) {
    dense_.resize(n);
    topk::decode(gradient.bytes, n, gradient.type, dense_.data());
  } else {
    check_dense(gradient, n);
  }
  const bool as_it_is = gradient.encoding == Encoding::dense && gradient.type == Dtype::float32;
  const bool floats = shape.moments == Moments::float32;
  auto* parameters = reinterpret_cast<float*>(record.arrays[0]);
  bool finite = true;
  std::size_t next = 0;  // the first segment that may reach into the chunk
  for (std::size_t begin = 0; begin < n; begin += kChunk) {
    const std::size_t count = std::min(kChunk, n - begin);
    const float* g = gradient_;
    if (gradient.encoding == Encoding::topk) {
      g = dense_.data() + begin;
    } else if (as_it_is) {
      g = reinterpret_cast<const float*>(gradient.bytes.data()) + begin;
    } else {
      kernels::to_float(gradient.type, gradient.bytes.data() + begin * bytes_of(gradient.type),
                        count, gradient_);
    }
    float* moments[3] = {nullptr, nullptr, nullptr};
    float* decoded[3] = {nullptr, first_, second_};
    for (std::size_t array = 1; array < shape.arrays(); ++array) {
      moments[array] =
          floats ? reinterpret_cast<float*>(record.arrays[array]) + begin : decoded[array];
      if (!floats) {
        decode_range(shape, array, record.arrays[array], n, begin, count, moments[array]);
      }
    }
    while (next < segments.size() && segments[next].end <= begin) ++next;
    touched_.clear();
    for (std::size_t i = next; i < segments.size() && segments[i].begin < begin + count; ++i) {
      const Segment& s = segments[i];
      const std::uint16_t which =
          s.parameter < plan.hyper_of.size() ? plan.hyper_of[s.parameter] : kSkip;
      if (which == kSkip) continue;
      const std::size_t from = std::max<std::size_t>(s.begin, begin) - begin;
      const std::size_t to = std::min<std::size_t>(s.end, begin + count) - begin;
      touched_.push_back(s);
      finite = finite && kernels::finite(g + from, to - from);
      const auto at = [&](float* array) { return array != nullptr ? array + from : nullptr; };
      kernels::update(shape.kind, plan.hypers.at(which), s.recipe, to - from,
                      parameters + begin + from, g + from, at(moments[1]), at(moments[2]));
    }
    for (std::size_t array = 1; !floats && array < shape.arrays(); ++array) {
      encode_range(shape, array, touched_, plan.step, moments[array], record.arrays[array], n,
                   begin, count);
    }
    if (out != nullptr) {
      kernels::from_float(out_type, parameters + begin, count, out + begin * bytes_of(out_type));
    }
  }
  return finite;
}

}  // namespace

std::vector<std::vector<Segment>> segments_of(const Shape& shape, const SegmentColumns& c) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw Error(ErrorKind::bad_input, what);
  };
  std::vector<std::vector<Segment>> all(shape.elements.size());
  const std::size_t rows = c.tile.size();
  require(c.begin.size() == rows && c.end.size() == rows && c.parameter.size() == rows &&
              c.rest.size() == rows && c.element.size() == rows,
          "columns of segments of different lengths");
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint32_t tile = c.tile[i];
    require(tile < all.size(), "a segment of a tile that is not there");
    const auto recipe = c.rest[i] ? kernels::Recipe::rest : kernels::Recipe::whole;
    const Segment s{c.begin[i], c.end[i], c.parameter[i], recipe, c.element[i]};
    const std::uint32_t before = all[tile].empty() ? 0 : all[tile].back().end;
    require(s.begin >= before && s.begin < s.end && s.end <= shape.elements[tile],
            "segments of a tile are to be ascending, apart and within it");
    all[tile].push_back(s);
  }
  return all;
}

std::unique_ptr<TileUpdate> tile_update(Updater updater, const Shape& shape) {
  if (updater == Updater::opencl) return opencl::tile_update(shape);
  return std::make_unique<CpuTileUpdate>();
}

void check_dense(const Gradient& gradient, std::size_t n) {
  if (gradient.bytes.size() == n * bytes_of(gradient.type)) return;
  throw Error(ErrorKind::bad_input, "a gradient of " + std::to_string(gradient.bytes.size()) +
                                        " bytes for a tile of " + std::to_string(n) + " elements");
}

void decode_array(const Shape& shape, std::size_t array, const std::byte* stored, std::size_t n,
                  float* out) {
  if (array == 0 || shape.moments == Moments::float32) {
    if (n > 0) std::memcpy(out, stored, n * sizeof(float));
    return;
  }
  float last[codec::kBlock];
  const std::size_t whole = n / codec::kBlock * codec::kBlock;
  decode_range(shape, array, stored, n, 0, whole, out);
  if (whole < n) {
    decode_range(shape, array, stored, n, whole, n - whole, last);
    std::copy_n(last, n - whole, out + whole);
  }
}

void encode_array(const Shape& shape, std::size_t array, std::span<const Segment> segments,
                  std::uint64_t step, const float* values, std::size_t n, std::byte* stored) {
  if (array == 0 || shape.moments == Moments::float32) {
    if (n > 0) std::memcpy(stored, values, n * sizeof(float));
    return;
  }
  const std::size_t whole = n / codec::kBlock * codec::kBlock;
  encode_range(shape, array, segments, step, values, stored, n, 0, whole);
  if (whole < n) {
    float last[codec::kBlock] = {};
    std::copy_n(values + whole, n - whole, last);
    encode_range(shape, array, segments, step, last, stored, n, whole, n - whole);
  }
}

}  // namespace smart_infinity
