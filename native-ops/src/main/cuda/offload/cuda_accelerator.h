// The ops' calls under nd4j-native as jobs of the pipeline.
#pragma once

#include <string>

#include "kernel/accelerator.h"

namespace gatedfwa::cuda {

/// Opens a device; null with a reason if it cannot be used. Never destroyed: calls may run until the process ends.
Accelerator* openAccelerator(const AcceleratorOptions& options, std::string& reason);

}  // namespace gatedfwa::cuda
