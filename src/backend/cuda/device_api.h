// The device behind the CUDA backend: a GPU (device_cuda.c) or host memory (device_emulated.c), whichever is linked in.
#pragma once
#include "backend/backend.h"

// capture_end of the emulated one gives a NULL graph, having run the launches between: launch again instead of a replay then.
extern const DeviceApi device_api;
