// The C side of tools/machine_times.py: all measurements by name.
#include "measure.cuh"

namespace hymba::machine {
namespace {

const std::vector<Measure>& measures() {
  static const std::vector<Measure> all = [] {
    std::vector<Measure> found;
    const auto add = [&](std::vector<Measure> more) {
      for (Measure& measure : more) found.push_back(std::move(measure));
    };
    add(pipe_measures());
    add(product_measures());
    add(memory_measures());
    add(launch_measures());
#ifdef HYMBA_MACHINE_SM90
    add(warpgroup_measures());
    add(bulk_measures());
#endif
    return found;
  }();
  return all;
}

}  // namespace
}  // namespace hymba::machine

// Null, or what went wrong. `count`: of `values`, in their capacity, out how many there are.
extern "C" const char* hymba_measure(const char* name, double* values, int* count) {
  for (const auto& measure : hymba::machine::measures()) {
    if (measure.name != name) continue;
    // Where there is no device this says so; the measurements count on one.
    if (const cudaError_t error = cudaFree(nullptr)) return cudaGetErrorString(error);
    std::vector<double> found;
    if (const int error = measure.run(found)) {
      cudaGetLastError();  // or the next measurement would find it
      return cudaGetErrorString(static_cast<cudaError_t>(error));
    }
    if (static_cast<int>(found.size()) > *count) return "more values than there is room for";
    std::copy(found.begin(), found.end(), values);
    *count = static_cast<int>(found.size());
    return nullptr;
  }
  return "no such measurement";
}
