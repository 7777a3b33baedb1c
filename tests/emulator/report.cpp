// Who did it and where: names and source lines of code addresses, by addr2line from the debug information.
#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "engine.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace hymba::emulator {
namespace {

constexpr int kMaxFrames = 24;

struct Frame {
  std::string function, place;
};

std::string read_command(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return text;
  char part[4096];
  while (size_t n = fread(part, 1, sizeof part, pipe)) text.append(part, n);
  pclose(pipe);
  return text;
}

// FILE:LINE, from the root of the project, without addr2line's remarks.
std::string clean_place(std::string place) {
  if (place.starts_with("./")) place.erase(0, 2);
  return place.substr(0, place.find(" (discriminator"));
}

// The function at a code address of this library and those inlined there, innermost first.
std::vector<Frame> frames_at(const void* pc) {
  Dl_info info;
  Dl_info self;
  if (!dladdr(pc, &info) || !dladdr(reinterpret_cast<const void*>(&report_crashes), &self)) return {};
  if (info.dli_fbase != self.dli_fbase) return {};
  char command[512];
  snprintf(command, sizeof command, "env -u LD_PRELOAD addr2line -Cfi -e '%s' 0x%zx 2>/dev/null",
           self.dli_fname,
           static_cast<size_t>(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase)));
  const std::string text = read_command(command);
  std::vector<Frame> frames;
  for (size_t begin = 0; begin < text.size();) {
    const size_t middle = text.find('\n', begin);
    const size_t end = middle == std::string::npos ? middle : text.find('\n', middle + 1);
    if (end == std::string::npos) break;
    frames.push_back(
        {text.substr(begin, middle - begin), clean_place(text.substr(middle + 1, end - middle - 1))});
    begin = end + 1;
  }
  return frames;
}

// Without namespaces of the project, return type and parameters; template arguments stay.
std::string short_name(std::string name) {
  for (const std::string noise : {"hymba::", "cuda::", "faults::", "(anonymous namespace)::"})
    for (size_t at; (at = name.find(noise)) != std::string::npos;) name.erase(at, noise.size());
  int depth = 0;
  size_t begin = 0, i = 0;
  for (; i < name.size() && (depth > 0 || name[i] != '('); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (depth == 0 && name[i] == ' ') begin = i + 1;
  }
  return name.substr(begin, i - begin);
}

// Frames between the kernel and the launch, and those that report.
bool is_machinery(const Frame& frame) {
  return frame.function.find("emulator::") != std::string::npos || frame.function.rfind("__tsan_", 0) == 0 ||
         frame.place.find("/c++/") != std::string::npos || frame.place.rfind("??", 0) == 0;
}

std::string frame_lines(void* pc) {
  std::string text;
  for (const Frame& frame : frames_at(static_cast<char*>(pc) - 1))  // the call, not what follows it
    if (!is_machinery(frame)) text += "\n    " + frame.place + " in " + short_name(frame.function);
  return text;
}

// Of ASan's reports, which come before.
[[maybe_unused]] void say_where() {
  if (current != nullptr) fprintf(stderr, "in %s\n", describe_running_thread().c_str());
}

void say_where_and_die(int number) {
  signal(number, SIG_DFL);
  fprintf(stderr, "%s", strsignal(number));
  if (current != nullptr)
    fprintf(stderr, " in %s%s", describe_running_thread().c_str(), call_stack().c_str());
  fprintf(stderr, "\n");
  raise(number);
}

}  // namespace

std::string describe_address(void* pc) {
  return frame_lines(pc);
}

std::string call_stack() {
  void* frames[kMaxFrames];
  const int count = backtrace(frames, kMaxFrames);
  std::string text;
  for (int i = 0; i < count; ++i) text += frame_lines(frames[i]);
  return text;
}

std::string describe_block(const Launch& launch, uint3 index) {
  const auto frames = frames_at(launch.kernel);
  char place[128];
  snprintf(place, sizeof place, ", block (%u, %u, %u)", index.x, index.y, index.z);
  return (frames.empty() ? "a kernel" : short_name(frames.back().function)) + place;
}

std::string describe_running_thread() {
  const std::string text = describe_block(*block->launch, block->index);
  if (current == nullptr) return text;
  char place[128];
  const uint3 t = current->thread;
  snprintf(place, sizeof place, ", thread (%u, %u, %u)", t.x, t.y, t.z);
  return text + place;
}

void report_crashes() {
  static bool done = false;
  if (done) return;
  done = true;
  static char stack[1 << 16];
  const stack_t alternative{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
  sigaltstack(&alternative, nullptr);
  struct sigaction action = {};
  action.sa_handler = say_where_and_die;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGABRT, &action, nullptr);  // of assert and UBSan
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(say_where);
#else
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigaction(number, &action, nullptr);
#endif
}

}  // namespace hymba::emulator
