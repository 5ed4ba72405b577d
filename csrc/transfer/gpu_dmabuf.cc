#include "transfer/gpu_dmabuf.h"

#include <unistd.h>

#include <string>

#include "base/bytes.h"
#include "io/gpu.h"

namespace hicache {

Result<GpuDmabuf> gpu_dmabuf_of(uint64_t address, uint64_t size) {
  const auto fail = [](const std::string& why) {
    return Status(Code::kUnsupported, "no dma-buf of the GPU's memory: " + why);
  };
  const GpuDriver* driver = GpuDriver::of_process();
  if (driver == nullptr) return fail("this process does not use CUDA");
  PointerFacts facts;
  if (const int error = driver->pointer_facts(address, &facts); error != 0) {
    return fail(driver->error_name(error));
  }
  if (facts.kind != PointerFacts::Kind::kDevice) return fail("it is none of a GPU");
  GpuContext context = nullptr;
  if (const int error = driver->context_retain(facts.device, &context); error != 0) {
    return fail(driver->error_name(error));
  }
  const auto os_page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t begin = address / os_page * os_page;
  const uint64_t end = round_up(address + size, os_page);
  int number = -1;
  int error;
  {
    const CurrentGpuContext current(*driver, context);
    error = current.error();
    if (error == 0) error = driver->export_dmabuf(begin, end - begin, &number);
  }
  (void)driver->context_release(facts.device);
  if (error != 0) return fail(driver->error_name(error));
  return GpuDmabuf{Fd(number), address - begin};
}

}  // namespace hicache
