// What tests want to know of parallel_std.cpp's threads.
#pragma once
#include <cstdint>

namespace hymba {

// Jobs that ran on more than one thread so far.
int64_t threaded_jobs();

}  // namespace hymba
