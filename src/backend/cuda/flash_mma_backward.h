// (tensor-core kernels)
