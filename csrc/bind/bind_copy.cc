// Checksums and copies, for the benchmarks and as an oracle's counterpart in the tests.
#include <nanobind/nanobind.h>

#include "bind/bind.h"
#include "transfer/checksum_copy.h"

namespace nb = nanobind;

namespace hicache {

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
}

}  // namespace hicache
