#include "primitives/probes.h"

#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

std::vector<probes::Probe> all_probes() {
  auto all = probes::all_probes();
  const auto sm90 = probes::sm90_probes();
  all.insert(all.end(), sm90.begin(), sm90.end());
  return all;
}

// uint8 [items, bytes] in and out.
Array run_probe(const std::string& name, const Array& in) {
  for (const probes::Probe& probe : all_probes()) {
    if (probe.name != name) continue;
    const int64_t items = in.shape(0);
    if (in.shape(1) != static_cast<int64_t>(probe.in_bytes) || items % probe.block != 0)
      throw std::invalid_argument("the probe " + name + " takes items of " + std::to_string(probe.in_bytes) +
                                  " bytes");
    const Array out = new_array_of(ItemType::uint8, {items, static_cast<int64_t>(probe.out_bytes)});
    if (probe.launch(in.data(), out.data(), static_cast<int>(items), nullptr) != 0)
      throw std::runtime_error("the launch failed");
    return out;
  }
  throw std::invalid_argument("no probe named " + name);
}

std::vector<std::string> probe_names() {
  std::vector<std::string> names;
  for (const probes::Probe& probe : all_probes()) names.push_back(probe.name);
  return names;
}

}  // namespace

void bind_probes(Registry& registry) {
  registry.def("run_probe", run_probe);
  registry.def("probe_names", probe_names);
}

}  // namespace hymba::emulator
