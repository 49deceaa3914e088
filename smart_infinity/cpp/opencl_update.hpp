// Tile updates by OpenCL kernels (kernels.cl), with the bits of the C++ ones: the seam where
// another accelerator plugs in. libOpenCL is loaded when it is asked for; docs/accelerators.md says
// which devices fit and how one is chosen.
#pragma once

#include <memory>
#include <string>

#include "tile.hpp"

namespace smart_infinity::opencl {

// Why there is no OpenCL device here that can compute to the bit; empty where there is one. Looked
// at once a process.
std::string unavailable_reason();

// "Platform: device" of the device in use. Error(environment) with the reason where there is none.
std::string device_name();

// Updates for tiles of this shape. The kernels are built here, at the first call for an optimizer;
// that may take half a minute. Error(environment) where OpenCL is unavailable or refuses the
// kernels, Error(bad_input) where moments are not float32.
std::unique_ptr<TileUpdate> tile_update(const Shape& shape);

}  // namespace smart_infinity::opencl
