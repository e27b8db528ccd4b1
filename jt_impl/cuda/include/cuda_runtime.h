// CUDA 13 dropped two fields of cudaDeviceProp that Jittor 1.3.11 reads. They are still to be had as attributes.
#pragma once

#include <vendor/cuda_runtime.h>

#if defined(__cplusplus) && CUDART_VERSION >= 13000

struct AlignCudaDeviceProp : cudaDeviceProp {
    int clockRate;    // kHz
    int computeMode;  // a cudaComputeMode
};

static inline cudaError_t cudaGetDeviceProperties(AlignCudaDeviceProp *properties, int device) {
    cudaError_t error = cudaGetDeviceProperties(static_cast<cudaDeviceProp *>(properties), device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&properties->clockRate, cudaDevAttrClockRate, device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&properties->computeMode, cudaDevAttrComputeMode, device);
    return error;
}

// From here on the name means the whole struct.
#define cudaDeviceProp AlignCudaDeviceProp

#endif
