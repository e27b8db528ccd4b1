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
