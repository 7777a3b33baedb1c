// One function an op: adds it to the registry, with the arguments of hymba_ops.functional in their order.
// Beside them, what the emulator's own tests call.
#pragma once
#include "bindings/registry.h"

namespace hymba::emulator {

void bind_attention(Registry& registry);
void bind_causal_conv1d(Registry& registry);
void bind_causal_conv1d_update(Registry& registry);
void bind_decode_attention(Registry& registry);
void bind_decode_branches(Registry& registry);
void bind_gated_mlp(Registry& registry);
void bind_linear(Registry& registry);
void bind_mamba_update(Registry& registry);
void bind_norm_average(Registry& registry);
void bind_norm_project(Registry& registry);
void bind_rms_norm(Registry& registry);
void bind_rotary(Registry& registry);
void bind_selective_scan(Registry& registry);
void bind_selective_state_update(Registry& registry);

void bind_faults(Registry& registry);
void bind_probes(Registry& registry);

}  // namespace hymba::emulator
