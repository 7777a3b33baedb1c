// The Hopper path of attention (attention_sm90.cu), as attention.cu sees it.
#pragma once
#include <cstddef>

#include "ops/attention.h"

namespace hymba::cuda {

// Why the Hopper kernel does not take this call on the current device; null: it does. Lengths are no reason,
// so that a row's bits do not depend on its neighbours through the choice of a kernel.
const char* attention_sm90_refusal(const AttentionParams& params);
// Of a call that it takes.
size_t attention_sm90_workspace_bytes(const AttentionParams& params);
// Launches on `stream` (a cudaStream_t); returns a cudaError_t.
int attention_sm90(const AttentionParams& params, void* stream);

}  // namespace hymba::cuda
