// The device behind the backend: device_cuda.c, or device_emulated.c in the emulation.
#pragma once
#include "backend/backend.h"
#include "backend/cuda/device/device.h"

extern const DeviceApi device_api;
// Of the kernel table (cuda.c): what DeviceApi.prepare does.
Status cuda_prepare(Device *dev, const KernelArgs *k, void **state, Diag *d);
