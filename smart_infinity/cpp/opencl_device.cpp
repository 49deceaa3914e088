#ifdef SMART_INFINITY_WITH_OPENCL

#include "opencl_device.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <vector>

#include "types.hpp"

namespace smart_infinity::opencl {

extern const char* const kSource;  // kernels.cl, put into a string by CMake

namespace {

constexpr const char* kChoice = "SMART_INFINITY_OPENCL_DEVICE";
constexpr const char* kGet = "apt-get install pocl-opencl-icd runs OpenCL on the processor";

std::string load(Api& api) {
  // Never closed: the drivers it loads have threads of their own.
  void* library = ::dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::string("libOpenCL.so.1 cannot be loaded; ") + kGet;
  const char* lacks = nullptr;
#define SMART_INFINITY_RESOLVE(name)                                        \
  api.name = reinterpret_cast<decltype(api.name)>(::dlsym(library, #name)); \
  if (api.name == nullptr) lacks = #name;
  SMART_INFINITY_OPENCL_FUNCTIONS(SMART_INFINITY_RESOLVE)
#undef SMART_INFINITY_RESOLVE
  return lacks == nullptr ? std::string() : std::string("libOpenCL.so.1 lacks ") + lacks;
}

// Text that `get` gives in two calls, its length first.
template <class Get>
std::string text_of(Get get) {
  std::size_t length = 0;
  if (get(0, nullptr, &length) != CL_SUCCESS || length == 0) return {};
  std::string text(length, '\0');
  if (get(length, text.data(), nullptr) != CL_SUCCESS) return {};
  text.resize(text.find('\0') == std::string::npos ? length : text.find('\0'));
  return text;
}

template <class Value>
Value value_of(const Api& cl, cl_device_id id, cl_device_info what) {
  Value value{};
  return cl.clGetDeviceInfo(id, what, sizeof value, &value, nullptr) == CL_SUCCESS ? value
                                                                                   : Value{};
}

// What keeps a device from computing as the processor does, to the bit; or nullptr.
const char* unfit(const Api& cl, cl_device_id id) {
  if (value_of<cl_bool>(cl, id, CL_DEVICE_AVAILABLE) == CL_FALSE) return "it is not available";
  if (value_of<cl_bool>(cl, id, CL_DEVICE_COMPILER_AVAILABLE) == CL_FALSE) {
    return "it has no compiler";
  }
  if (value_of<cl_bool>(cl, id, CL_DEVICE_ENDIAN_LITTLE) == CL_FALSE) return "it is big-endian";
  const auto floats = value_of<cl_device_fp_config>(cl, id, CL_DEVICE_SINGLE_FP_CONFIG);
  if ((floats & CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT) == 0) {
    return "its division and square root are not correctly rounded";
  }
  if ((floats & CL_FP_ROUND_TO_NEAREST) == 0) return "it does not round to nearest";
  if ((floats & CL_FP_DENORM) == 0) return "it has no denormal numbers";
  if ((floats & CL_FP_INF_NAN) == 0) return "it has no infinity and NaN";
  return nullptr;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// Takes the first device that fits and is meant by the environment: "0:1" is the second device of
// the first platform, anything else a part of the name.
void choose(Device& found) {
  const Api& cl = found.cl;
  const char* given = std::getenv(kChoice);
  const std::string wanted = given == nullptr ? "" : given;
  cl_uint count = 0;
  std::vector<cl_platform_id> platforms;
  // Without any platform this is an error of the loader's own.
  if (cl.clGetPlatformIDs(0, nullptr, &count) == CL_SUCCESS && count > 0) {
    platforms.resize(count);
    check(cl.clGetPlatformIDs(count, platforms.data(), nullptr), "clGetPlatformIDs");
  }
  std::string refused, others;
  for (std::size_t p = 0; p < platforms.size(); ++p) {
    const std::string platform = text_of(
        [&](auto... to) { return cl.clGetPlatformInfo(platforms[p], CL_PLATFORM_NAME, to...); });
    if (cl.clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, 0, nullptr, &count) != CL_SUCCESS) {
      continue;
    }
    std::vector<cl_device_id> ids(count);
    check(cl.clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, count, ids.data(), nullptr),
          "clGetDeviceIDs");
    for (std::size_t d = 0; d < ids.size(); ++d) {
      const std::string name = platform + ": " + text_of([&](auto... to) {
                                 return cl.clGetDeviceInfo(ids[d], CL_DEVICE_NAME, to...);
                               });
      const std::string number = std::to_string(p) + ":" + std::to_string(d);
      if (!wanted.empty() && wanted != number &&
          lower(name).find(lower(wanted)) == std::string::npos) {
        others += (others.empty() ? "" : ", ") + number + " " + name;
        continue;
      }
      if (const char* why = unfit(cl, ids[d])) {
        refused += (refused.empty() ? "" : "; ") + name + ": " + why;
        continue;
      }
      found.id = ids[d];
      found.name = name;
      return;
    }
  }
  if (!refused.empty()) {
    found.missing = refused;
  } else if (!others.empty()) {
    found.missing = std::string(kChoice) + "=" + wanted + " is none of: " + others;
  } else {
    found.missing = std::string("no OpenCL platform has a device; ") + kGet;
  }
}

}  // namespace

void check(cl_int status, const char* call) {
  if (status == CL_SUCCESS) return;
  throw Error(ErrorKind::environment,
              std::string("OpenCL: ") + call + " failed with " + std::to_string(status));
}

Device& device() {
  // Never destroyed: at exit the drivers may be gone before us.
  static Device& only = *[] {
    auto* made = new Device;
    try {
      made->missing = load(made->cl);
      if (!made->missing.empty()) return made;
      choose(*made);
      if (!made->missing.empty()) return made;
      cl_int status = CL_SUCCESS;
      made->context = made->cl.clCreateContext(nullptr, 1, &made->id, nullptr, nullptr, &status);
      check(status, "clCreateContext");
    } catch (const Error& error) {
      made->missing = error.what();
    }
    return made;
  }();
  return only;
}

cl_program Device::program(const std::string& options) {
  const std::lock_guard lock(mutex_);
  const auto known = programs_.find(options);
  if (known != programs_.end()) return known->second;
  cl_int status = CL_SUCCESS;
  const char* source = kSource;
  const cl_program made = cl.clCreateProgramWithSource(context, 1, &source, nullptr, &status);
  check(status, "clCreateProgramWithSource");
  const std::string all = "-cl-std=CL1.2 -cl-fp32-correctly-rounded-divide-sqrt " + options;
  if (cl.clBuildProgram(made, 1, &id, all.c_str(), nullptr, nullptr) != CL_SUCCESS) {
    const std::string log = text_of([&](auto... to) {
      return cl.clGetProgramBuildInfo(made, id, CL_PROGRAM_BUILD_LOG, to...);
    });
    throw Error(ErrorKind::environment,
                name + " does not build the kernels: " + log.substr(0, log.find('\n')));
  }
  programs_.emplace(options, made);
  return made;
}

}  // namespace smart_infinity::opencl

#endif
