// The Python module, worker.py's: the registered functions on numpy arrays, the modes, and memory for
// arguments.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/ops.h"
#include "runtime.h"

namespace hymba::emulator {
namespace {

namespace py = pybind11;

constexpr const char* kNames[] = {"float32", "uint16", "float16",
                                  "float64", "int32",  "uint8"};  // ItemType's order

Array from_numpy(const py::array& array) {
  const std::string name = py::str(array.dtype());
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (name != kNames[i]) continue;
    std::vector<int64_t> strides(array.strides(), array.strides() + array.ndim());
    for (int64_t& stride : strides) stride /= array.itemsize();
    return Array(const_cast<void*>(array.data()), static_cast<ItemType>(i),
                 {array.shape(), array.shape() + array.ndim()}, std::move(strides));
  }
  throw std::invalid_argument("no kernel takes arrays of " + name);
}

Value from_python(const py::handle& object) {
  if (object.is_none()) return {};
  if (py::isinstance<py::bool_>(object)) return object.cast<bool>();
  if (py::isinstance<py::int_>(object)) return object.cast<int64_t>();
  if (py::isinstance<py::float_>(object)) return object.cast<double>();
  if (py::isinstance<py::str>(object)) return object.cast<std::string>();
  return from_numpy(py::cast<py::array>(object));
}

py::object to_python(const Value& value) {
  if (std::holds_alternative<std::monostate>(value)) return py::none();
  if (const Array* array = std::get_if<Array>(&value))  // contiguous, as new_array makes it
    return py::array(py::dtype(kNames[static_cast<int>(array->type())]), array->shape(), array->data());
  if (const auto* names = std::get_if<std::vector<std::string>>(&value)) return py::cast(*names);
  throw std::invalid_argument("results are arrays or lists of names");
}

py::list call(const Registry::Function& function, const py::args& arguments) {
  Values values;
  for (const py::handle argument : arguments) values.push_back(from_python(argument));
  const Values results = function(values);
  check_guards();
  py::list list;
  for (const Value& result : results) list.append(to_python(result));
  return list;
}

void set_mode(const std::string& schedule, uint64_t seed, bool eager_copies, bool races, int capability) {
  if (schedule == "ascending")
    options.schedule = Schedule::ascending;
  else if (schedule == "descending")
    options.schedule = Schedule::descending;
  else if (schedule == "random")
    options.schedule = Schedule::random;
  else
    throw std::invalid_argument("no schedule is named " + schedule);
  options.seed = seed;
  options.eager_copies = eager_copies;
  options.races = races;
  options.capability = capability;
}

}  // namespace
}  // namespace hymba::emulator

PYBIND11_MODULE(hymba_emulated, module) {
  using namespace hymba::emulator;
  py::register_exception<Error>(module, "Error");
  module.def("set_mode", set_mode);
  py::class_<GuardedMemory>(module, "GuardedMemory")
      .def(py::init<size_t, size_t>())
      .def("watch", &GuardedMemory::watch)
      // Its bytes, to be read and written; they live as long as the object.
      .def("bytes", [](const py::object& self) {
        const auto& memory = self.cast<const GuardedMemory&>();
        return py::array(py::dtype("uint8"), {static_cast<py::ssize_t>(memory.bytes())}, memory.data(), self);
      });

  static Registry registry;
  bind_attention(registry);
  bind_causal_conv1d(registry);
  bind_causal_conv1d_update(registry);
  bind_decode_attention(registry);
  bind_decode_branches(registry);
  bind_gated_mlp(registry);
  bind_linear(registry);
  bind_mamba_update(registry);
  bind_norm_average(registry);
  bind_norm_project(registry);
  bind_rms_norm(registry);
  bind_rotary(registry);
  bind_selective_scan(registry);
  bind_selective_state_update(registry);
  bind_faults(registry);
  bind_probes(registry);
  py::dict functions;
  for (const auto& [name, function] : registry.functions())
    functions[name.c_str()] =
        py::cpp_function([&function](const py::args& arguments) { return call(function, arguments); });
  module.attr("functions") = functions;
}
