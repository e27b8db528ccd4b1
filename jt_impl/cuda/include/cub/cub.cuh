// CUB 3 (in CUDA 13) dropped names that Jittor 1.3.11 uses in non-zero, softmax and depth-wise convolution.
// Their successors take the same arguments in the same order.
#pragma once

#include <vendor/cub/cub.cuh>

#if CUB_MAJOR_VERSION >= 3

#include <cuda/functional>
#include <cuda/ptx>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

CUB_NAMESPACE_BEGIN

template <class Value, class Offset = ptrdiff_t>
using CountingInputIterator =
    THRUST_NS_QUALIFIER::counting_iterator<Value, THRUST_NS_QUALIFIER::use_default, THRUST_NS_QUALIFIER::use_default, Offset>;

template <class Value, class Conversion, class Input, class Offset = ptrdiff_t>
using TransformInputIterator = THRUST_NS_QUALIFIER::transform_iterator<Conversion, Input, Value>;

using Max = ::cuda::maximum<>;

__device__ __forceinline__ unsigned int LaneId() {
    return ::cuda::ptx::get_sreg_laneid();
}

CUB_NAMESPACE_END

#endif
