// The only file that knows pybind11: checks shapes, releases the GIL, converts structs to dicts.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "planner.hpp"
#include "simulator.hpp"

namespace py = pybind11;

namespace {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Indices = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;
using StageTuple = std::tuple<int, int, int>;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

std::vector<double> copy(const Doubles& array, const std::vector<std::size_t>& shape,
                         const std::string& name, bool may_lack) {
  require(static_cast<std::size_t>(array.ndim()) == shape.size(), name + ": wrong rank");
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    require(static_cast<std::size_t>(array.shape(static_cast<py::ssize_t>(axis))) == shape[axis],
            name + ": wrong shape");
  }
  std::vector<double> values(array.data(), array.data() + array.size());
  for (const double value : values) {
    require((may_lack && std::isnan(value)) || (std::isfinite(value) && value >= 0.0),
            name + ": expected finite numbers, 0 or more");
  }
  return values;
}

pipe_bd::Samples copy_samples(const Indices& offsets, const Doubles& values, std::size_t rows,
                              const std::string& name) {
  require(values.ndim() == 1 && offsets.ndim() == 1, name + ": expected flat arrays");
  require(static_cast<std::size_t>(offsets.shape(0)) == rows + 1, name + ": wrong offsets");
  pipe_bd::Samples samples;
  samples.values = copy(values, {static_cast<std::size_t>(values.size())}, name, false);
  std::int64_t previous = 0;
  for (py::ssize_t row = 0; row < offsets.shape(0); ++row) {
    const std::int64_t offset = offsets.data()[row];
    require(offset >= previous && (row > 0 || offset == 0), name + ": offsets must rise from 0");
    samples.offsets.push_back(static_cast<std::size_t>(offset));
    previous = offset;
  }
  require(samples.offsets.back() == samples.values.size(), name + ": offsets miss values");
  return samples;
}

pipe_bd::Profile make_profile(std::vector<int> groups, const Doubles& teacher_s,
                              const Doubles& student_s, const Doubles& allreduce_s,
                              const Doubles& memory_bytes, const Doubles& update_s,
                              const Doubles& activation_bytes, double latency_s, double bytes_per_s,
                              double loader_s, const std::tuple<Indices, Doubles>& teacher_samples,
                              const std::tuple<Indices, Doubles>& student_samples,
                              const std::tuple<Indices, Doubles>& update_samples) {
  pipe_bd::Profile profile;
  require(update_s.ndim() == 1 && update_s.shape(0) > 0, "update_s: expected one entry per block");
  profile.blocks = static_cast<std::size_t>(update_s.shape(0));
  int previous = 0;
  for (const int group : groups) {
    require(group > previous, "groups: expected rising sizes from 1");
    previous = group;
  }
  profile.groups = std::move(groups);
  const std::vector<std::size_t> table{profile.blocks, profile.groups.size()};
  profile.teacher_s = copy(teacher_s, table, "teacher_s", true);
  profile.student_s = copy(student_s, table, "student_s", true);
  profile.allreduce_s = copy(allreduce_s, table, "allreduce_s", true);
  profile.memory_bytes = copy(memory_bytes, table, "memory_bytes", true);
  profile.update_s = copy(update_s, {profile.blocks}, "update_s", false);
  profile.activation_bytes = copy(activation_bytes, {profile.blocks}, "activation_bytes", false);
  for (std::size_t at = 0; at < profile.teacher_s.size(); ++at) {
    require(std::isnan(profile.teacher_s[at]) == std::isnan(profile.student_s[at]) &&
                std::isnan(profile.teacher_s[at]) == std::isnan(profile.allreduce_s[at]),
            "teacher_s, student_s and allreduce_s must lack the same entries");
  }
  require(std::isfinite(latency_s) && latency_s >= 0.0, "latency_s: expected 0 or more");
  require(std::isfinite(bytes_per_s) && bytes_per_s > 0.0, "bytes_per_s: expected above 0");
  require(std::isfinite(loader_s) && loader_s >= 0.0, "loader_s: expected 0 or more");
  profile.latency_s = latency_s;
  profile.bytes_per_s = bytes_per_s;
  profile.loader_s = loader_s;
  const std::size_t cells = profile.teacher_s.size();
  profile.teacher_samples = copy_samples(std::get<0>(teacher_samples), std::get<1>(teacher_samples),
                                         cells, "teacher_samples");
  profile.student_samples = copy_samples(std::get<0>(student_samples), std::get<1>(student_samples),
                                         cells, "student_samples");
  profile.update_samples = copy_samples(std::get<0>(update_samples), std::get<1>(update_samples),
                                        profile.blocks, "update_samples");
  return profile;
}

void require_devices(int devices) {
  require(devices >= 1 && devices <= 1 << 20, "devices: expected 1 to 1048576");
}

pipe_bd::SimulationOptions make_options(int steps, int depth, int prefetch, std::uint64_t seed,
                                        double jitter) {
  require(steps >= 1, "steps: expected 1 or more");
  require(depth >= 1, "depth: expected 1 or more");
  require(prefetch >= 0, "prefetch: expected 0 or more");
  require(jitter >= 0.0 && jitter <= 1.0, "jitter: expected 0 to 1");
  return {steps, depth, prefetch, seed, jitter};
}

std::vector<pipe_bd::Stage> make_stages(const pipe_bd::Profile& profile,
                                        const std::vector<StageTuple>& tuples) {
  std::vector<pipe_bd::Stage> stages;
  int due = 0;
  for (const auto& [first, last, devices] : tuples) {
    require(first == due && last >= first, "stages: expected contiguous blocks from 0");
    require(static_cast<std::size_t>(last) < profile.blocks, "stages: expected known blocks");
    require_devices(devices);
    stages.push_back({first, last, devices});
    due = last + 1;
  }
  require(static_cast<std::size_t>(due) == profile.blocks, "stages: expected all blocks");
  return stages;
}

py::dict to_dict(const pipe_bd::SimulationResult& result) {
  Doubles busy({static_cast<py::ssize_t>(result.devices.size()), py::ssize_t{4}});
  auto cell = busy.mutable_unchecked<2>();
  for (py::ssize_t d = 0; d < cell.shape(0); ++d) {
    const pipe_bd::DeviceTime& time = result.devices[static_cast<std::size_t>(d)];
    cell(d, 0) = time.teacher_s;
    cell(d, 1) = time.student_s;
    cell(d, 2) = time.allreduce_s;
    cell(d, 3) = time.update_s;
  }
  using namespace pybind11::literals;
  return py::dict("total_s"_a = result.total_s, "period_s"_a = result.period_s,
                  "fill_s"_a = result.fill_s, "bytes_per_step"_a = result.bytes_per_step,
                  "peak_queue"_a = result.peak_queue, "peak_unsent"_a = result.peak_unsent,
                  "busy_s"_a = busy);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Planner and discrete-event simulator of pipe_bd";

  py::class_<pipe_bd::Profile>(m, "Profile", "Cost tables; NaN marks what was not measured")
      .def(py::init(&make_profile), py::kw_only(), py::arg("groups"), py::arg("teacher_s"),
           py::arg("student_s"), py::arg("allreduce_s"), py::arg("memory_bytes"),
           py::arg("update_s"), py::arg("activation_bytes"), py::arg("latency_s"),
           py::arg("bytes_per_s"), py::arg("loader_s"), py::arg("teacher_samples"),
           py::arg("student_samples"), py::arg("update_samples"));

  m.def(
      "plan",
      [](const pipe_bd::Profile& profile, int devices, std::optional<double> memory_cap_bytes,
         int largest_group) {
        require_devices(devices);
        require(!memory_cap_bytes || *memory_cap_bytes >= 0.0, "memory_cap_bytes: below 0");
        require(largest_group >= 0, "largest_group: expected 0 or more");
        pipe_bd::PlanResult result;
        {
          py::gil_scoped_release release;
          result = pipe_bd::plan(profile, {devices, memory_cap_bytes, largest_group});
        }
        std::vector<StageTuple> stages;
        for (const pipe_bd::Stage& s : result.stages)
          stages.emplace_back(s.first, s.last, s.devices);
        return py::make_tuple(stages, result.period_s, result.failed_block);
      },
      "Exact plan: (stages, period_s, failed_block); no stages when infeasible", py::arg("profile"),
      py::arg("devices"), py::arg("memory_cap_bytes"), py::arg("largest_group"));

  m.def(
      "simulate_relay",
      [](const pipe_bd::Profile& profile, const std::vector<StageTuple>& tuples, bool barrier,
         int devices, int steps, int depth, int prefetch, std::uint64_t seed, double jitter) {
        require_devices(devices);
        const auto options = make_options(steps, depth, prefetch, seed, jitter);
        const auto stages = make_stages(profile, tuples);
        pipe_bd::SimulationResult result;
        {
          py::gil_scoped_release release;
          result = pipe_bd::simulate_relay(profile, stages, barrier, devices, options);
        }
        return to_dict(result);
      },
      "Stages that relay the teacher's activations; `barrier` makes it tr", py::arg("profile"),
      py::arg("stages"), py::arg("barrier"), py::arg("devices"), py::kw_only(), py::arg("steps"),
      py::arg("depth"), py::arg("prefetch"), py::arg("seed"), py::arg("jitter"));

  m.def(
      "simulate_dp",
      [](const pipe_bd::Profile& profile, int devices, int steps, int depth, int prefetch,
         std::uint64_t seed, double jitter) {
        require_devices(devices);
        const auto options = make_options(steps, depth, prefetch, seed, jitter);
        pipe_bd::SimulationResult result;
        {
          py::gil_scoped_release release;
          result = pipe_bd::simulate_dp(profile, devices, options);
        }
        return to_dict(result);
      },
      "Block after block on all devices", py::arg("profile"), py::arg("devices"), py::kw_only(),
      py::arg("steps"), py::arg("depth"), py::arg("prefetch"), py::arg("seed"), py::arg("jitter"));

  m.def(
      "simulate_ls",
      [](const pipe_bd::Profile& profile, const std::vector<std::vector<int>>& assignment,
         int steps, int depth, int prefetch, std::uint64_t seed, double jitter) {
        const auto options = make_options(steps, depth, prefetch, seed, jitter);
        for (const auto& blocks : assignment) {
          for (const int block : blocks) {
            require(block >= 0 && static_cast<std::size_t>(block) < profile.blocks,
                    "assignment: no such block");
          }
        }
        pipe_bd::SimulationResult result;
        {
          py::gil_scoped_release release;
          result = pipe_bd::simulate_ls(profile, assignment, options);
        }
        return to_dict(result);
      },
      "Whole blocks on single devices", py::arg("profile"), py::arg("assignment"), py::kw_only(),
      py::arg("steps"), py::arg("depth"), py::arg("prefetch"), py::arg("seed"), py::arg("jitter"));

  m.def(
      "bin_pack",
      [](const std::vector<double>& costs, int bins) {
        require_devices(bins);
        return pipe_bd::bin_pack(costs, bins);
      },
      "Longest processing time first", py::arg("costs"), py::arg("bins"));
}
