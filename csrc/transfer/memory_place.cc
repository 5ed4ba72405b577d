#include "transfer/memory_place.h"

#include <string>

#include "io/gpu.h"

namespace hicache {
namespace {

Result<MemoryPlace> place_at(const GpuDriver& driver, uint64_t address) {
  PointerFacts facts;
  if (const int error = driver.pointer_facts(address, &facts); error != 0) {
    return Status(Code::kIo, "asking the CUDA driver what memory is at " + std::to_string(address) +
                                 ": " + driver.error_name(error));
  }
  MemoryPlace place;
  if (facts.kind == PointerFacts::Kind::kDevice) place.device = facts.device;
  place.is_pinned = facts.kind == PointerFacts::Kind::kPinned;
  return place;
}

}  // namespace

Result<MemoryPlace> place_of(uint64_t address, uint64_t size) {
  const GpuDriver* driver = GpuDriver::of_process();
  if (driver == nullptr || size == 0) return MemoryPlace{};
  Result<MemoryPlace> first = place_at(*driver, address);
  if (!first.ok()) return first;
  const Result<MemoryPlace> last = place_at(*driver, address + (size - 1));
  if (!last.ok()) return last;
  if (first.value().device != last.value().device) {
    return Status(Code::kInvalidArgument,
                  std::to_string(size) + " bytes at " + std::to_string(address) +
                      " begin in one memory and end in another (of the CPU, or of a GPU)");
  }
  first.value().is_pinned = first.value().is_pinned && last.value().is_pinned;
  return first;
}

}  // namespace hicache
