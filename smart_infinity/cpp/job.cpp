#include "job.hpp"

namespace smart_infinity {
namespace {

Job job_of(Job::Type type, std::uint32_t tile, std::uint64_t tag) {
  Job job;
  job.type = type;
  job.tile = tile;
  job.tag = tag;
  return job;
}

}  // namespace

Job Job::update(std::uint32_t tile, std::uint64_t tag, const Gradient& gradient,
                std::span<std::byte> out, Dtype out_type) {
  Job job = job_of(Type::update, tile, tag);
  job.gradient = gradient;
  job.out = out;
  job.out_type = out_type;
  return job;
}

Job Job::land(std::uint32_t tile, std::uint64_t tag, const Gradient& gradient, bool add) {
  Job job = job_of(Type::land, tile, tag);
  job.gradient = gradient;
  job.add = add;
  return job;
}

Job Job::update_landed(std::uint32_t tile, std::uint64_t tag, std::span<std::byte> out,
                       Dtype out_type) {
  Job job = job_of(Type::update_landed, tile, tag);
  job.out = out;
  job.out_type = out_type;
  return job;
}

Job Job::read(std::uint32_t tile, std::uint64_t tag, std::span<std::byte> out, std::uint32_t mask,
              bool decoded) {
  Job job = job_of(Type::read, tile, tag);
  job.out = out;
  job.mask = mask;
  job.decoded = decoded;
  return job;
}

Job Job::write(std::uint32_t tile, std::uint64_t tag, std::span<const std::byte> values,
               std::uint32_t mask, bool decoded) {
  Job job = job_of(Type::write, tile, tag);
  job.gradient.bytes = values;
  job.mask = mask;
  job.decoded = decoded;
  return job;
}

}  // namespace smart_infinity
