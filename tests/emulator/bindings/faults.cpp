#include "faults/faults.h"

#include <cstring>

#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

std::vector<faults::Fault> all_faults() {
  std::vector<faults::Fault> all;
  for (const auto& part :
       {faults::barrier_faults(), faults::warp_faults(), faults::memory_faults(), faults::race_faults(),
        faults::copy_faults(), faults::hopper_faults(), faults::grid_faults()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

// The results and what they should be.
std::pair<Array, Array> run_fault(const std::string& name, bool planted, const Array& in) {
  for (const faults::Fault& fault : all_faults()) {
    if (fault.name != name) continue;
    const Array out = new_array({faults::kCells}, DType::f32),
                expected = new_array({faults::kCells}, DType::f32);
    for (int i = 0; i < faults::kCells; ++i) static_cast<float*>(expected.data())[i] = fault.expected(i);
    const Array counters = new_array_of(ItemType::int32, {faults::kCells});
    std::memset(counters.data(), 0, faults::kCells * sizeof(uint32_t));
    fault.launch(planted, static_cast<const float*>(in.data()), static_cast<float*>(out.data()),
                 static_cast<uint32_t*>(counters.data()));
    return {out, expected};
  }
  throw std::invalid_argument("no fault named " + name);
}

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  for (const faults::Fault& fault : all_faults()) names.push_back(fault.name);
  return names;
}

}  // namespace

void bind_faults(Registry& registry) {
  registry.def("run_fault", run_fault);
  registry.def("fault_names", fault_names);
}

}  // namespace hymba::emulator
