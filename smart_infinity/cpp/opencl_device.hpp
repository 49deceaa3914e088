// The OpenCL device of this process: libOpenCL by dlopen, a device that fits, its context, and the
// programs built for it. For opencl_*.cpp only.
#pragma once

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include <map>
#include <mutex>
#include <string>

namespace smart_infinity::opencl {

#define SMART_INFINITY_OPENCL_FUNCTIONS(each)                                                      \
  each(clGetPlatformIDs) each(clGetPlatformInfo) each(clGetDeviceIDs) each(clGetDeviceInfo)        \
      each(clCreateContext) each(clCreateCommandQueue) each(clReleaseCommandQueue)                 \
          each(clCreateProgramWithSource) each(clBuildProgram) each(clGetProgramBuildInfo)         \
              each(clCreateKernel) each(clReleaseKernel) each(clSetKernelArg) each(clCreateBuffer) \
                  each(clReleaseMemObject) each(clEnqueueWriteBuffer) each(clEnqueueReadBuffer)    \
                      each(clEnqueueNDRangeKernel) each(clFinish)

struct Api {
#define SMART_INFINITY_DECLARE(name) decltype(&::name) name = nullptr;
  SMART_INFINITY_OPENCL_FUNCTIONS(SMART_INFINITY_DECLARE)
#undef SMART_INFINITY_DECLARE
};

struct Device {
  Api cl;
  cl_device_id id = nullptr;
  cl_context context = nullptr;
  std::string name;     // "Platform: device"
  std::string missing;  // why there is none; all else is empty then

  // The kernels built with these options; once a process. Error(environment) with the compiler's
  // first words.
  cl_program program(const std::string& options);

 private:
  std::mutex mutex_;
  std::map<std::string, cl_program> programs_;
};

// Found at the first call, and kept until the process ends.
Device& device();

// Throws Error(environment) that names the call, unless it succeeded.
void check(cl_int status, const char* call);

}  // namespace smart_infinity::opencl
