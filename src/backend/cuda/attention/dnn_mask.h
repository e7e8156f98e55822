// The masks of cuDNN calls.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// Which keys query i (of this call's nq) sees, of keys 0 .. nk - 1.
typedef enum DnnMaskKind {
    DNN_FULL,
    DNN_CAUSAL,  // k <= i + shift
    DNN_WINDOW,  // k <= i + shift and k > i + shift - window
} DnnMaskKind;
