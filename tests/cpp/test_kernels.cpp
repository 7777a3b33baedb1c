// Every CPU kernel on random parameters (fuzz.h), against short loops in double and against itself on other
// thread counts. Made for the sanitizer builds, where an access outside an array, a race or an overflow ends
// the run.
//
//   test_kernels                          every kernel, kCases cases each
//   test_kernels --cases 5000 --seed 1    more of them, from another seed
//   test_kernels attention --seed 17      the one case that a failure named
//
// The instruction set is HYMBA_OPS_CPU_ISA's; one that this CPU lacks is skipped (exit status 77).
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#include <sanitizer/common_interface_defs.h>
#define HYMBA_SANITIZED
#endif

#include "core/parallel_std.h"
#include "cpu/isa.h"
#include "fuzz.h"

// The sanitizers' runtimes look these up. A race ends the run as the other findings do.
extern "C" const char* __tsan_default_options() {
  return "halt_on_error=1";
}
extern "C" const char* __ubsan_default_options() {
  return "print_stacktrace=1:abort_on_error=1";
}

namespace hymba::fuzz {

struct Op {
  const char* name;
  void (*run_case)(Case& c);
};

// Every name that csrc/ops declares with HYMBA_CPU_KERNEL; tests/test_core_build.py compares.
constexpr Op kOps[] = {
    {"attention", attention_case},
    {"decode_attention", decode_attention_case},
    {"linear", linear_case},
    {"linear_epilogue", linear_epilogue_case},
    {"rotary", rotary_case},
    {"causal_conv1d", causal_conv1d_case},
    {"causal_conv1d_update", causal_conv1d_update_case},
    {"selective_scan", selective_scan_case},
    {"selective_state_update", selective_state_update_case},
    {"rms_norm", rms_norm_case},
    {"norm_average", norm_average_case},
    {"exp2_sum", exp2_sum_case},
};

// ThreadSanitizer is several times slower than AddressSanitizer.
#if defined(__SANITIZE_THREAD__)
constexpr int64_t kCases = 60;
#else
constexpr int64_t kCases = 200;
#endif
constexpr int kSkipped = 77;

// A crash or a sanitizer's report ends the process: say in which case.
static const Case* current_case = nullptr;
static void print_current_case() {
  if (current_case) std::fprintf(stderr, "in test_kernels %s\n", current_case->text().c_str());
}
static void report_crashes() {
  const auto report = [](int) {
    print_current_case();
    std::_Exit(1);
  };
  std::signal(SIGABRT, report);  // UBSan's end, by the options below
#ifdef HYMBA_SANITIZED
  __sanitizer_set_death_callback(print_current_case);
#else
  std::signal(SIGSEGV, report);
#endif
}

// Returns the number of failures.
static int64_t fuzz_op(const Op& op, uint64_t seed, int64_t cases) {
  int64_t failed = 0;
  const int64_t threaded_before = threaded_jobs();
  for (int64_t i = 0; i < cases && failed < 5; ++i) {
    Case c(op.name, seed + i);
    current_case = &c;
    op.run_case(c);
    failed += c.failures() > 0;
    current_case = nullptr;
  }
  // Each case is run on 1, 2 and 3 threads.
  const int64_t threaded = threaded_jobs() - threaded_before;
  std::printf("%-24s %lld cases, %lld of %lld runs on more than one thread, %lld cases failed\n", op.name,
              static_cast<long long>(cases), static_cast<long long>(threaded),
              static_cast<long long>(3 * cases), static_cast<long long>(failed));
  if (cases >= kCases && threaded < cases / 2) {
    std::printf("FAILED %s: too few runs on more than one thread to find races\n", op.name);
    ++failed;
  }
  return failed;
}

static int run_all(int argc, char** argv) {
  const char* only = nullptr;
  uint64_t seed = 0;
  int64_t cases = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (std::strcmp(argv[i], "--cases") == 0 && i + 1 < argc) {
      cases = std::atoll(argv[++i]);
    } else {
      only = argv[i];
    }
  }
  if (cases == 0) cases = only ? 1 : kCases;
  int64_t failed = 0, ops = 0;
  for (const Op& op : kOps) {
    if (only && std::strcmp(only, op.name) != 0) continue;
    failed += fuzz_op(op, seed, cases);
    ++ops;
  }
  if (ops == 0) std::printf("no kernel is named %s\n", only);
  return failed != 0 || ops == 0;
}

}  // namespace hymba::fuzz

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // before a sanitizer's report, not after
  try {
    std::printf("instruction set %s\n", hymba::cpu::isa_name(hymba::cpu::selected_isa()));
  } catch (const std::invalid_argument& error) {
    std::printf("not run: %s\n", error.what());
    return hymba::fuzz::kSkipped;
  }
  hymba::fuzz::report_crashes();
  return hymba::fuzz::run_all(argc, argv);
}
