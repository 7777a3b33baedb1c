#include "ops/selective_scan.h"

#include <cstring>

#include "bindings/arrays.h"
#include "bindings/ops.h"
#include "bindings/scan_operands.h"

namespace hymba::emulator {
namespace {

std::vector<int64_t> checkpoint_shape(const Array& x, bool packed, int64_t sequences, int64_t states) {
  const int64_t T = x.shape(1), interval = kCheckpointInterval;
  return {x.shape(0), packed ? T / interval + sequences : divide_up(T, interval), x.shape(2), states};
}

// Beside the public function's arguments, whether checkpoints are saved. What is not wanted comes back as
// None.
std::tuple<Array, OptionalArray, OptionalArray> selective_scan(
    const Array& x, const Array& dt, const Array& A, const Array& B, const Array& C, const OptionalArray& D,
    const OptionalArray& z, const OptionalArray& dt_bias, bool dt_softplus,
    const OptionalArray& initial_state, bool return_final_state, const OptionalArray& cu_seqlens,
    bool save_checkpoints) {
  const Array out = new_like(x);
  const Sequences where = sequences(x, cu_seqlens);
  const DType state_type = dtype_of(x) == DType::f64 ? DType::f64 : DType::f32;
  OptionalArray final_state, checkpoints;
  if (return_final_state) final_state = new_array({where.count, x.shape(2), A.shape(1)}, state_type);
  if (save_checkpoints) {
    checkpoints = new_array(checkpoint_shape(x, cu_seqlens.has_value(), where.count, A.shape(1)), state_type);
    // As the op does it: packed, the gaps are zero.
    if (cu_seqlens)
      std::memset(checkpoints->data(), 0, checkpoints->size() * item_bytes(checkpoints->type()));
  }
  SelectiveScanParams params{
      .operands = scan_operands(x, dt, A, B, C, D, z, dt_bias, dt_softplus),
      .initial_state = tokens_view(initial_state),
      .final_state = data_or_null(final_state),
      .checkpoints = data_or_null(checkpoints),
      .sequences = where,
      .batch = x.shape(0),
      .workspace = nullptr,
  };
  params.operands.out = data_or_null(out);
  if (x.shape(2) > 0) run(cuda::selective_scan, cuda::selective_scan_workspace_bytes, params);
  return {out, final_state, checkpoints};
}

}  // namespace

void bind_selective_scan(Registry& registry) {
  registry.def("selective_scan", selective_scan);
}

}  // namespace hymba::emulator
