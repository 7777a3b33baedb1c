// Huge pages for large outputs.
#pragma once
#include <cstdint>

namespace hymba {

// For memory about to be written for the first time: asks for 2 MiB pages where they fit. An output of tens
// of megabytes is fresh memory in each call, and its page faults, 4 KiB each, cost more than a convolution.
// A hint: it changes no contents, and fails silently where the system has no such pages.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace hymba
