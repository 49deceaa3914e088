// What an engine does to a tile whose arrays are in a slot's memory.
#include <cstring>
#include <utility>

#include "crc32c.hpp"
#include "engine.hpp"
#include "engine_slot.hpp"

namespace smart_infinity {

// A gradient that stays in memory needs no slot. False where it goes to disk.
bool Engine::land(const Job& job) {
  Landing::Landed& landed = landing_.at(job.tile);
  const std::size_t n = landing_.elements(job.tile);
  const Gradient& g = job.gradient;
  if (g.encoding != Encoding::dense || g.bytes.size() != n * bytes_of(g.type)) {
    return false;  // refused with a slot in hand
  }
  if (!job.add && landed.where == Landing::Where::memory) landing_.drop(job.tile);
  if (landed.where == Landing::Where::disk) return false;
  if (landed.where == Landing::Where::memory) {
    std::vector<float> sum(n), more(n);
    kernels::to_float(landed.type, landed.bytes.get(), n, sum.data());
    kernels::to_float(g.type, g.bytes.data(), n, more.data());
    for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
    std::memcpy(landed.bytes.get(), sum.data(), n * sizeof(float));
    landed.type = Dtype::float32;
  } else {
    if (!landing_.take_memory(job.tile)) return false;
    std::memcpy(landed.bytes.get(), g.bytes.data(), g.bytes.size());
    landed.type = g.type;
  }
  emit(job, Event::Type::done, 0, true);
  return true;
}

// What was read is what was written, or nothing is done with it.
void Engine::verify(Slot& slot) {
  const double begin = now_s();
  const Entry& entry = table_[slot.job.tile];
  for (unsigned array = 0; array < file_.shape().arrays(); ++array) {
    if ((slot.read_mask >> array & 1U) == 0) continue;
    const std::size_t bytes = file_.shape().stored_bytes(array, slot.in_memory.n);
    if (page_sum(slot.in_memory.arrays[array], bytes) != entry.sums[array]) {
      throw Error(ErrorKind::corrupt, std::string("the ") + array_name(array) + " in " +
                                          file_.file().path().string() +
                                          " are damaged (checksum); see smart-infinity repair");
    }
  }
  const std::lock_guard lock(mutex_);
  counters_.sum_s += now_s() - begin;
}

void Engine::work(Slot& slot) {
  verify(slot);
  switch (slot.job.type) {
    case Job::Type::update:
    case Job::Type::update_landed:
      step(slot);
      break;
    case Job::Type::land:
      write_landed(slot);
      break;
    case Job::Type::read:
      hand_out(slot);
      break;
    case Job::Type::write: {
      const Shape& shape = file_.shape();
      const std::size_t n = slot.in_memory.n;
      std::span<const std::byte> from = slot.job.gradient.bytes;
      for (std::size_t array = 0; array < shape.arrays(); ++array) {
        if ((slot.job.mask >> array & 1U) == 0) continue;
        const std::size_t bytes = slot.job.decoded ? n * sizeof(float) : shape.bytes(array, n);
        if (from.size() < bytes) throw Error(ErrorKind::bad_input, "fewer bytes than its arrays");
        std::byte* to = slot.in_memory.arrays[array];
        std::memset(to, 0, shape.stored_bytes(array, n));
        if (slot.job.decoded) {
          std::vector<float> values(n);
          std::memcpy(values.data(), from.data(), bytes);
          encode_array(shape, array, segments_[slot.job.tile], plan_.step, values.data(), n, to);
        } else {
          std::memcpy(to, from.data(), bytes);
        }
        from = from.subspan(bytes);
      }
      if (!from.empty()) throw Error(ErrorKind::bad_input, "more bytes than its arrays");
      emit(slot.job, Event::Type::done, 0, true);
      write_back(slot);
      break;
    }
  }
}

void Engine::step(Slot& slot) {
  const Job& job = slot.job;
  Gradient gradient = job.gradient;
  if (job.type == Job::Type::update_landed) {
    const Landing::Landed& landed = landing_.at(job.tile);
    const std::byte* bytes =
        landed.where == Landing::Where::memory ? landed.bytes.get() : slot.gradient.data();
    gradient = {{bytes, slot.in_memory.n * bytes_of(landed.type)}, Encoding::dense, landed.type};
  }
  const std::size_t bytes = job.out.empty() ? 0 : slot.in_memory.n * bytes_of(job.out_type);
  if (job.out.size() < bytes) throw Error(ErrorKind::bad_input, "no room to hand parameters up");
  const double begin = now_s();
  const bool finite =
      update_->run(file_.shape(), segments_[job.tile], plan_, gradient, slot.in_memory,
                   bytes > 0 ? job.out.data() : nullptr, job.out_type);
  const double end = now_s();
  updated_[job.tile] = 1;
  if (job.type == Job::Type::update_landed) landing_.drop(job.tile);
  {
    const std::lock_guard lock(mutex_);
    counters_.kernel_s += end - begin;
    ++counters_.tiles;
    if (options_.trace) trace_.push_back({Span::What::update, job.tile, begin, end});
  }
  emit(job, Event::Type::done, bytes, finite);
  if (options_.trace) {
    const std::lock_guard lock(mutex_);
    trace_.push_back({Span::What::hand_up, job.tile, end, now_s()});
  }
  write_back(slot);
}

void Engine::hand_out(Slot& slot) {
  const Job& job = slot.job;
  const Shape& shape = file_.shape();
  const std::size_t n = slot.in_memory.n;
  std::size_t at = 0;
  const auto room = [&](std::size_t bytes) {
    if (job.out.size() - at < bytes) throw Error(ErrorKind::bad_input, "no room to read into");
    return job.out.data() + at;
  };
  for (std::size_t array = 0; array < shape.arrays(); ++array) {
    if ((job.mask >> array & 1U) == 0) continue;
    const std::size_t bytes = job.decoded ? n * sizeof(float) : shape.bytes(array, n);
    std::byte* out = room(bytes);
    if (job.decoded) {
      decode_array(shape, array, slot.in_memory.arrays[array], n, reinterpret_cast<float*>(out));
    } else {
      std::memcpy(out, slot.in_memory.arrays[array], bytes);
    }
    at += bytes;
  }
  if ((job.mask & kLandedBit) != 0) {
    const Landing::Landed& landed = landing_.at(job.tile);
    if (landed.where == Landing::Where::nowhere) {
      throw Error(ErrorKind::protocol, "no gradient has landed");
    }
    const std::size_t bytes = n * bytes_of(landed.type);
    std::memcpy(room(bytes),
                landed.where == Landing::Where::memory ? landed.bytes.get() : slot.gradient.data(),
                bytes);
    at += bytes;
    landing_.drop(job.tile);
  }
  emit(job, Event::Type::done, at, true);
  finish(slot);
}

// Beside the committed state, parameters first.
void Engine::write_back(Slot& slot) {
  const std::uint32_t tile = slot.job.tile;
  const Shape& shape = file_.shape();
  const double begin = now_s();
  slot.entry.extent = 1 - file_.committed().table[tile].extent;
  for (std::size_t array = 0; array < shape.arrays(); ++array) {
    slot.entry.sums[array] =
        page_sum(slot.in_memory.arrays[array], shape.stored_bytes(array, slot.in_memory.n));
  }
  {
    const std::lock_guard lock(mutex_);
    counters_.sum_s += now_s() - begin;
  }
  slot.writing = true;
  slot.parameters_begin = slot.moments_begin = now_s();
  for (unsigned array = 0; array < shape.arrays(); ++array) {
    transfer(slot, true, file_.file(), file_.offset(tile, slot.entry.extent, array),
             {slot.in_memory.arrays[array], shape.stored_bytes(array, slot.in_memory.n)}, array);
  }
}

void Engine::write_landed(Slot& slot) {
  const Job& job = slot.job;
  const std::size_t n = slot.in_memory.n;
  const Gradient& g = job.gradient;
  Landing::Landed& landed = landing_.at(job.tile);
  if (g.encoding != Encoding::dense || g.bytes.size() != n * bytes_of(g.type)) {
    throw Error(ErrorKind::bad_input, "a gradient of " + std::to_string(g.bytes.size()) +
                                          " bytes to land for " + std::to_string(n) + " elements");
  }
  std::size_t bytes = g.bytes.size();
  if (job.add && landed.where == Landing::Where::disk) {
    std::vector<float> sum(n), more(n);
    kernels::to_float(landed.type, slot.gradient.data(), n, sum.data());
    kernels::to_float(g.type, g.bytes.data(), n, more.data());
    for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
    bytes = n * sizeof(float);
    std::memcpy(slot.gradient.data(), sum.data(), bytes);
    landed.type = Dtype::float32;
  } else {
    std::memcpy(slot.gradient.data(), g.bytes.data(), bytes);
    landed.type = g.type;
  }
  slot.writing = true;
  transfer(slot, true, landing_.file(), landing_.offset(job.tile),
           slot.gradient.first((bytes + kPage - 1) / kPage * kPage), kLanded);
}

}  // namespace smart_infinity
