// cuDNN 9 removed the first interface to recurrent networks. Jittor 1.3.11 compiles it in whether it is used or not;
// Gold-YOLO has none. Each call reports that it is not supported, which Jittor turns into an error. The arguments do
// not matter, so one template stands for every signature.
#pragma once

#include <vendor/cudnn.h>

#if defined(__cplusplus) && CUDNN_MAJOR >= 9

#define ALIGN_REMOVED_FROM_CUDNN(name)                              \
    template <class... Arguments>                                   \
    inline cudnnStatus_t name(const Arguments &...) {               \
        return CUDNN_STATUS_NOT_SUPPORTED;                          \
    }

ALIGN_REMOVED_FROM_CUDNN(cudnnSetRNNDescriptor_v6)
ALIGN_REMOVED_FROM_CUDNN(cudnnGetRNNParamsSize)
ALIGN_REMOVED_FROM_CUDNN(cudnnGetRNNWorkspaceSize)
ALIGN_REMOVED_FROM_CUDNN(cudnnGetRNNTrainingReserveSize)
ALIGN_REMOVED_FROM_CUDNN(cudnnGetRNNLinLayerMatrixParams)
ALIGN_REMOVED_FROM_CUDNN(cudnnGetRNNLinLayerBiasParams)
ALIGN_REMOVED_FROM_CUDNN(cudnnRNNForwardTraining)
ALIGN_REMOVED_FROM_CUDNN(cudnnRNNForwardInference)
ALIGN_REMOVED_FROM_CUDNN(cudnnRNNBackwardData)
ALIGN_REMOVED_FROM_CUDNN(cudnnRNNBackwardWeights)

#undef ALIGN_REMOVED_FROM_CUDNN

#endif

#if defined(__cplusplus) && CUDNN_MAJOR >= 8

// Convolutions are set up as PyTorch sets up its own. Jittor 1.3.11 leaves float32 to cuDNN's default, which is TF32
// from the Ampere cards on; where `use_tensorcore` is set it lets cuDNN round float32 to half; and it sums the products
// of half-precision numbers in half precision. Here float32 stays float32 unless `use_tensorcore` asks for TF32, and
// half-precision products are summed in float32.
static inline cudnnStatus_t align_set_convolution(
    cudnnConvolutionDescriptor_t convolution, int dimensions, const int *padding, const int *stride,
    const int *dilation, cudnnConvolutionMode_t mode, cudnnDataType_t type) {
    const bool half = type == CUDNN_DATA_HALF || type == CUDNN_DATA_BFLOAT16;
    const cudnnStatus_t status = cudnnSetConvolutionNdDescriptor(
        convolution, dimensions, padding, stride, dilation, mode, half ? CUDNN_DATA_FLOAT : type);
    if (status != CUDNN_STATUS_SUCCESS) return status;
    const cudnnMathType_t single = type == CUDNN_DATA_FLOAT ? CUDNN_FMA_MATH : CUDNN_DEFAULT_MATH;
    return cudnnSetConvolutionMathType(convolution, half ? CUDNN_TENSOR_OP_MATH : single);
}

// What Jittor asks for where its flag is set, and for half precision always.
static inline cudnnStatus_t align_set_math(cudnnConvolutionDescriptor_t convolution, cudnnMathType_t wanted) {
    if (wanted == CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION) {
        cudnnMathType_t now = CUDNN_DEFAULT_MATH;
        const cudnnStatus_t status = cudnnGetConvolutionMathType(convolution, &now);
        if (status != CUDNN_STATUS_SUCCESS) return status;
        wanted = now == CUDNN_TENSOR_OP_MATH ? CUDNN_TENSOR_OP_MATH : CUDNN_DEFAULT_MATH;
    }
    return cudnnSetConvolutionMathType(convolution, wanted);
}

// Jittor's list of algorithms for the gradient of the weights has six entries, and it walks along it as far as this count,
// which cuDNN has as seven: beyond the end, which g++ makes an endless loop of.
#define CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT 6

#define cudnnSetConvolutionNdDescriptor align_set_convolution
#define cudnnSetConvolutionMathType align_set_math

#endif
