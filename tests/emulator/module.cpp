// The Python module: the ops on numpy arrays, the modes, and buffers for arguments. worker.py is its user.
#include "bindings/arrays.h"
#include "bindings/ops.h"
#include "runtime.h"

PYBIND11_MODULE(hymba_emulated, module) {
  namespace emulator = hymba::emulator;
  using emulator::Schedule;
  pybind11::register_exception<emulator::Error>(module, "Error");
  module.def("set_mode", [](const std::string& schedule, uint64_t seed, bool eager_copies, bool races) {
    emulator::options.schedule = schedule == "ascending"    ? Schedule::ascending
                                 : schedule == "descending" ? Schedule::descending
                                 : schedule == "random"
                                     ? Schedule::random
                                     : throw std::invalid_argument("unknown schedule " + schedule);
    emulator::options.seed = seed;
    emulator::options.eager_copies = eager_copies;
    emulator::options.races = races;
  });
  module.def("new_buffer", emulator::new_buffer);
  module.def("watch", emulator::watch);
  module.def("check_guards", emulator::check_guards);
  emulator::bind_norm_average(module);
}
