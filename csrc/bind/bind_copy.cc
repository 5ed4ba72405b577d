// Checksums and copies, for the benchmarks and as an oracle's counterpart in the tests.
#include <nanobind/nanobind.h>

#include <algorithm>

#include "bind/bind.h"
#include "transfer/checksum_copy.h"
#include "transfer/first_write.h"

namespace nb = nanobind;

namespace hicache {
namespace {

constexpr unsigned kThreadsMax = 256;

}  // namespace

void bind_copy(nb::module_& m) {
  m.attr("STRIPE_SIZE") = kStripeSize;
  m.def(
      "page_checksum",
      [](uint64_t address, uint64_t size) {
        nb::gil_scoped_release no_gil;
        return page_checksum(reinterpret_cast<const void*>(address), size);
      },
      nb::arg("address"), nb::arg("size"),
      "Return the checksum of a page of `size` bytes that lies in one piece at `address`.");
  m.def(
      "write_each_page",
      [](uint64_t address, uint64_t size, unsigned threads, uint64_t timeout_ms) {
        nb::gil_scoped_release no_gil;
        CopyThreads workers(std::min(threads, kThreadsMax));
        return write_each_page(reinterpret_cast<uint8_t*>(address), size, workers,
                               Deadline::after_ms(timeout_ms));
      },
      nb::arg("address"), nb::arg("size"), nb::arg("threads"), nb::arg("timeout_ms"),
      "Write to each OS page of a range without changing a byte, so that the first copy into it "
      "is\n"
      "as fast as the next. Blocks; returns False if the time-out came first.");
}

}  // namespace hicache
